package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/doctor"
	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/initramfs"
	"github.com/hatchvm/hatch/internal/host/console"
	"github.com/hatchvm/hatch/internal/host/disk"
	"github.com/hatchvm/hatch/internal/host/link"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/recipe"
	"github.com/hatchvm/hatch/internal/host/rootfs"
	snapshotfiles "github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/server/sshgate"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/firecracker"
	"github.com/hatchvm/hatch/internal/vmm/qemu"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// consoleLogBytes is the size of one of a console log's two files.
const consoleLogBytes = 1 << 20

// Places in the data directory of guests' memory and of snapshots.
const (
	memoryDir   = "memory"
	snapshotDir = "snapshots"
)

// hostParts is everything that touches the host, real or fake.
type hostParts struct {
	drivers   []vmm.Driver // the one to use by default first
	network   vm.Network
	forwards  vm.Forwards
	files     vm.Files
	memories  vm.Memories
	snapshots snapshot.Files
	guests    vm.Guests
	consoles  vm.Consoles
	inspector image.Inspector
	initramfs image.Initramfs
	builder   image.Builder
	portBusy  func(port int) bool
	check     func() error // of the network, for /healthz
	checkVMM  func() error // of the VMM's program, for /healthz
}

// chooseHost makes the parts that HATCH_VMM asks for.
func (p *parts) chooseHost(ctx context.Context) (*hostParts, error) {
	if p.cfg.VMM == "fake" {
		return p.fakeHost()
	}
	return p.realHost(ctx)
}

func (p *parts) fakeHost() (*hostParts, error) {
	_, _ = fmt.Fprintln(p.out, "hatchd: HATCH_VMM=fake: VMs are only pretended")
	p.log.Warn("HATCH_VMM=fake: VMs are only pretended; nothing runs, and nothing is isolated")
	h := newFakeHost(p.vmRoot)
	memories, err := memory.In(p.path(memoryDir), h.Dir)
	if err != nil {
		return nil, err
	}
	p.onClose(memories.Close)
	snapshots, err := p.openSnapshotFiles(0)
	if err != nil {
		return nil, err
	}
	return &hostParts{
		drivers: []vmm.Driver{vmmtest.NewFake()}, network: h, forwards: h, files: h, memories: memories, snapshots: snapshots, guests: h,
		consoles:  console.New(h.Dir, consoleLogBytes, p.log),
		inspector: rootfs.New(rootfs.Config{ModulesDir: p.path("modules")}), initramfs: fakeInitramfs{}, builder: fakeBuilder{},
		check: func() error { return nil }, checkVMM: func() error { return nil },
	}, nil
}

func (p *parts) realHost(ctx context.Context) (*hostParts, error) {
	drivers, err := makeDrivers(ctx, p.cfg, p.cfg.VMM == firecracker.Name, p.log)
	if err != nil {
		return nil, err
	}
	first := drivers[0].Info()
	p.log.Info("VMs that do not choose run on this", "vmm", first.Name, "version", first.Version, "why", first.Why)
	builder, err := recipe.New(p.path("images"))
	if err != nil {
		return nil, err
	}
	links, err := p.openNetwork(ctx)
	if err != nil {
		return nil, err
	}
	gate := sshgate.New(sshgate.Config{Allowed: p.cfg.SSHAllowed, Rouse: p.rouse, Log: p.log})
	p.shut = gate.Shutdown
	p.onClose(func() error { gate.Shutdown(); return nil })
	files := disk.New(p.vmRoot, p.path("templates"))
	memories, err := memory.Open(p.path(memoryDir), files.Dir)
	if err != nil {
		return nil, err
	}
	p.onClose(memories.Close)
	snapshots, err := p.openSnapshotFiles(snapshotfiles.ReserveBytes)
	if err != nil {
		return nil, err
	}
	return &hostParts{
		drivers: drivers, network: links, forwards: gate, files: files, memories: memories, snapshots: snapshots,
		guests:    guest.New(p.log),
		consoles:  console.New(files.Dir, consoleLogBytes, p.log),
		inspector: rootfs.New(rootfs.Config{ModulesDir: p.path("modules"), Modules: initramfs.ModuleNames(), NeedsPVH: drivers[0].Info().Name == qemu.Name}),
		initramfs: initramfs.NewMaker(p.path("initramfs"), p.cfg.AgentPath),
		builder:   builder, portBusy: portBusy, check: links.Check,
		checkVMM: func() error { return checkPrograms(p.cfg, drivers) },
	}, nil
}

// openSnapshotFiles opens the directories of snapshots, which leave so many bytes
// of the disk free.
func (p *parts) openSnapshotFiles(reserve int64) (*snapshotfiles.Files, error) {
	files, err := snapshotfiles.Open(p.path(snapshotDir), reserve)
	if err == nil {
		p.onClose(files.Close)
	}
	return files, err
}

// rouse wakes a VM that somebody wants to reach.
func (p *parts) rouse(ctx context.Context, vmID string) error { return p.vms.Rouse(ctx, vmID) }

func (p *parts) path(name string) string { return filepath.Join(p.cfg.DataDir, name) }

// openNetwork sets the network up with the VMs that are live in force at once.
func (p *parts) openNetwork(ctx context.Context) (*link.Links, error) {
	live, err := p.liveLinks(ctx)
	if err != nil {
		return nil, err
	}
	links := link.New(link.Config{Network: p.cfg.Network, AllowPrivate: p.cfg.EgressAllowPrivate, Log: p.log})
	if err := links.Setup(ctx, live); err != nil {
		return nil, errors.Join(err, links.Close())
	}
	p.onClose(links.Close)
	return links, nil
}

func (p *parts) liveLinks(ctx context.Context) ([]vm.Link, error) {
	vms, err := p.store.AllVMs(ctx)
	if err != nil {
		return nil, err
	}
	var live []vm.Link
	for _, v := range vms {
		if v.State.Live() && v.EnableNetwork && v.Lease.Address.IsValid() {
			live = append(live, v.Link())
		}
	}
	return live, nil
}

// portBusy reports whether somebody listens on a port of this host.
func portBusy(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return true
	}
	return l.Close() != nil
}

// DoctorSettings returns what `hatchd doctor` examines the host for.
func DoctorSettings(cfg config.Config) doctor.Settings {
	return doctor.Settings{
		DataDir: cfg.DataDir, MemoryDir: filepath.Join(cfg.DataDir, memoryDir), DiskReserveMiB: memory.ReserveBytes >> 20,
		HTTPAddr: cfg.HTTPAddr, BridgeName: cfg.Network.Bridge,
		SSHPortMin: cfg.SSHPortMin, SSHPortMax: cfg.SSHPortMax,
		Driver: cfg.VMM, QEMUBin: cfg.QEMUBin, FirecrackerBin: cfg.FirecrackerBin, JailerBin: cfg.JailerBin, AgentPath: cfg.AgentPath,
		DefaultImage: filepath.Join(cfg.DataDir, "images", "debian.json"),
	}
}
