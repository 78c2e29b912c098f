package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/disk"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/process/processtest"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// fakeHost stands in for Linux when HATCH_VMM=fake: no bridge, no TAP, no
// disks, no ports, and guests whose agent is ready at once. It exists for
// scripts and demonstrations that run without root.
type fakeHost struct {
	root  string      // run directories
	disks *disk.Files // for what needs no more of a host than a directory

	mu    sync.Mutex
	links map[string]vm.Link // by VM id
}

func newFakeHost(root string) *fakeHost {
	return &fakeHost{root: root, disks: disk.New(root, ""), links: map[string]vm.Link{}}
}

// Attach implements vm.Network.
func (h *fakeHost) Attach(ctx context.Context, l vm.Link) (*os.File, error) {
	return nil, h.Reattach(ctx, l)
}

// Reattach implements vm.Network.
func (h *fakeHost) Reattach(_ context.Context, l vm.Link) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links[l.VMID] = l
	return nil
}

// Detach implements vm.Network.
func (h *fakeHost) Detach(_ context.Context, l vm.Link) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.links, l.VMID)
	return nil
}

// Traffic implements vm.Network: nothing is sent.
func (h *fakeHost) Traffic(context.Context, vm.Link) (vm.Traffic, error) { return vm.Traffic{}, nil }

// Open implements vm.Forwards.
func (h *fakeHost) Open(string, int, netip.AddrPort) error { return nil }

// Close implements vm.Forwards.
func (h *fakeHost) Close(int) {}

// Connect implements vm.Guests: the guest has its address and no cloud-init.
func (h *fakeHost) Connect(vmID string, _ func(context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	h.mu.Lock()
	l, linked := h.links[vmID]
	h.mu.Unlock()
	report := &vm.GuestReport{AgentVersion: "fake", CloudInit: vm.CloudInit{Status: "done"}}
	if linked {
		report.Addresses = []netip.Addr{l.Address}
	}
	observe(report)
	return h.withFiles(vmID, fakeGuest{processtest.New()})
}

// Rejoin implements vm.Guests.
func (h *fakeHost) Rejoin(vmID string, dial func(context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	return h.Connect(vmID, dial, observe)
}

// Recast implements vm.Guests.
func (h *fakeHost) Recast(vmID string, dial func(context.Context) (net.Conn, error), observe func(*vm.GuestReport), _ vm.Identity) vm.Guest {
	return h.Connect(vmID, dial, observe)
}

// fakeGuest leaves shutting down to the power button, which the fake driver
// has. ITS PROCESSES ARE PRETENDED: a command is one of the few that
// processtest knows by name, each a few lines of Go, and nothing is ever run on
// this machine.
type fakeGuest struct{ processes }

// processes can be embedded beside another package's Guest.
type processes = *processtest.Guest

var _ process.Guest = fakeGuest{}

// Confirmed implements vm.Guest: a copy is itself from the beginning.
func (fakeGuest) Confirmed(context.Context) error { return nil }

func (fakeGuest) Shutdown(context.Context, bool) error {
	return errors.New("the fake guest has no agent")
}

func (g fakeGuest) Close() error {
	g.processes.Close()
	return nil
}

// SetClock implements vm.Guest: the fake guest has the host's.
func (fakeGuest) SetClock(context.Context) error { return nil }

func (fakeGuest) Usage(context.Context) (vm.GuestUsage, error) {
	return vm.GuestUsage{}, errors.New("the fake guest has no agent")
}

func (fakeGuest) Dial(context.Context, int) (net.Conn, error) {
	return nil, errors.New("the fake guest has no agent")
}

// Dir implements vm.Files.
func (h *fakeHost) Dir(vmID string) string { return filepath.Join(h.root, vmID) }

// Disk implements vm.Files.
func (h *fakeHost) Disk(vmID string) string { return h.disks.Disk(vmID) }

// Provision implements vm.Files.
func (h *fakeHost) Provision(ctx context.Context, v vm.VM) error {
	return h.ProvisionFrom(ctx, v, func(_ context.Context, path string) error { return os.WriteFile(path, []byte("fake disk\n"), 0o600) })
}

// ProvisionFrom implements vm.Files.
func (h *fakeHost) ProvisionFrom(ctx context.Context, v vm.VM, fill func(ctx context.Context, path string) error) error {
	if err := os.MkdirAll(h.Dir(v.ID), 0o700); err != nil {
		return err
	}
	return fill(ctx, h.Disk(v.ID))
}

// Stage implements vm.Files.
func (h *fakeHost) Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	return h.disks.Stage(ctx, vmID, fill)
}

// Settle implements vm.Files.
func (h *fakeHost) Settle(vmID string, takeIn func(vmID, saved string) error) error {
	return h.disks.Settle(vmID, takeIn)
}

// Unstage implements vm.Files.
func (h *fakeHost) Unstage(vmID string) error { return h.disks.Unstage(vmID) }

// Seed implements vm.Files.
func (h *fakeHost) Seed(context.Context, vm.VM) error { return nil }

// Disks implements vm.Files.
func (h *fakeHost) Disks(_ vm.VM, own string) ([]vmm.Disk, error) {
	return []vmm.Disk{{Serial: "hatch-disk", Path: own}}, nil
}

// Remove implements vm.Files.
func (h *fakeHost) Remove(vmID string) error { return os.RemoveAll(h.Dir(vmID)) }

// SetAside implements vm.Files.
func (h *fakeHost) SetAside(vmID string) error { return h.Remove(vmID) }

// Allocated implements vm.Files.
func (h *fakeHost) Allocated(string) (int64, error) { return 0, nil }

// Orphans implements vm.Files.
func (h *fakeHost) Orphans(known map[string]bool) ([]string, error) {
	entries, err := os.ReadDir(h.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var orphans []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), vm.IDPrefix) && !known[e.Name()] {
			orphans = append(orphans, e.Name())
		}
	}
	return orphans, err
}

// fakeImage makes a default image of two small files, so that VMs can be
// created without building one.
func fakeImage(owner, dir string) (image.Image, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return image.Image{}, err
	}
	img := image.Image{ID: image.DefaultID, OwnerID: owner, Name: "fake", RootfsFormat: "ext4", DiskMode: image.DiskOverlay, CloudInit: true}
	for name, file := range map[string]*image.File{"vmlinuz": &img.Kernel, "rootfs.ext4": &img.Rootfs} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.WriteFile(path, []byte("fake "+name), 0o600); err != nil {
				return image.Image{}, err
			}
		}
		var err error
		if *file, err = image.Stat(path); err != nil {
			return image.Image{}, fmt.Errorf("cannot read the fake image: %w", err)
		}
	}
	return img, nil
}

// fakeInitramfs stands in for an archive nobody boots.
type fakeInitramfs struct{}

func (fakeInitramfs) Make(context.Context, image.Boot) (string, error) { return os.DevNull, nil }

// fakeBuilder refuses: there is nothing to build images for.
type fakeBuilder struct{}

func (fakeBuilder) Build(context.Context, string, bool, io.Writer) (image.Built, error) {
	return image.Built{}, errs.New(errs.Unsupported, "fake_vmm", "cannot build an image: hatchd runs with HATCH_VMM=fake").
		WithHint("start hatchd with HATCH_VMM=auto")
}
