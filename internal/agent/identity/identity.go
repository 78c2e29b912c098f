// Package identity gives a clone its own hostname, machine id, SSH host keys,
// cloud-init instance and network addresses, in place of those of its original.
//
// internal/agent sets the clock and the kernel's seed before, and communicates with
// the host. Files and programs that an image lacks are skipped. Start at
// [Guest.Reidentify], whose steps are in order.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/nic"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Guest is a guest by its root directory.
type Guest struct {
	root   string
	log    *slog.Logger
	kernel kernel
}

// kernel has the system calls, which tests replace.
type kernel struct {
	hostname    func() (string, error)
	setHostname func(name string) error
	dropCache   func(device string) error
	unmount     func(path string) error
	hangUp      func(pid int) error
}

// New returns the guest that this process runs in.
func New(log *slog.Logger) *Guest {
	return &Guest{root: "/", log: log, kernel: kernel{
		hostname:    os.Hostname,
		setHostname: func(name string) error { return unix.Sethostname([]byte(name)) },
		dropCache:   dropCache,
		unmount:     func(path string) error { return unix.Unmount(path, 0) },
		hangUp:      func(pid int) error { return unix.Kill(pid, unix.SIGHUP) },
	}}
}

func (g *Guest) path(elements ...string) string {
	return filepath.Join(append([]string{g.root}, elements...)...)
}

// Reidentify gives the guest the identity as, and returns the identity that it then
// has. It may be called again after an error. It changes the network last: the host
// drops packets with the original's MAC and address, so that the guest cannot send
// before all else is its own.
func (g *Guest) Reidentify(ctx context.Context, as wire.Identity) (wire.Self, error) {
	for _, step := range []struct {
		name string
		do   func(context.Context, wire.Identity) error
	}{
		{"the hostname", g.changeHostname},
		{"the machine id", g.renewMachineID},
		{"the SSH certificates", g.replaceSSHTrust},
		{"the SSH host keys", g.renewHostKeys},
		{"the stored random seeds", g.removeRandomSeeds},
		{"cloud-init", g.changeInstance},
		{"the network", g.replaceNIC},
		{"the network services", g.restartNetworkServices},
	} {
		if err := step.do(ctx, as); err != nil {
			return wire.Self{}, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return g.self(as)
}

// findNIC returns the guest's interface, and n as its configuration. internal/guest/wire
// has validated n.
func (g *Guest) findNIC(n *wire.NIC) (nic.Config, netlink.Link, error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return nic.Config{}, nil, err
	}
	link, err := nic.Physical(g.path("sys"), mac)
	return nic.Config{MAC: mac, Address: n.Address, Gateway: n.Gateway}, link, err
}

// replaceNIC replaces the original's MAC in the files of the guest's network services,
// and then the interface's configuration. It leaves an interface of networkd down until
// networkd is restarted: networkd would remove an address that it has not set.
func (g *Guest) replaceNIC(_ context.Context, as wire.Identity) error {
	if as.NIC == nil {
		return nil
	}
	config, link, err := g.findNIC(as.NIC)
	if err != nil {
		return err
	}
	if err := g.replaceMAC(link.Attrs().HardwareAddr, config.MAC); err != nil {
		return err
	}
	if g.hasNetworkd(link.Attrs().Index) {
		return config.Reset(link)
	}
	return config.Replace(link)
}

// self reads the guest's identity from its interface and files, not from as.
func (g *Guest) self(as wire.Identity) (wire.Self, error) {
	name, err := g.kernel.hostname()
	if err != nil {
		return wire.Self{}, err
	}
	self := wire.Self{Hostname: name, MachineID: g.machineID()}
	if as.NIC == nil {
		return self, nil
	}
	_, link, err := g.findNIC(as.NIC)
	if err != nil {
		return wire.Self{}, err
	}
	addresses, err := nic.Addresses(link)
	if err != nil {
		return wire.Self{}, err
	}
	self.MAC = link.Attrs().HardwareAddr.String()
	switch {
	case slices.Contains(addresses, as.NIC.Address):
		self.Address = as.NIC.Address
	case len(addresses) > 0:
		self.Address = addresses[0]
	}
	return self, nil
}

// removeRandomSeeds removes the seeds that an init has stored for the next boot: the
// original has the same.
func (g *Guest) removeRandomSeeds(context.Context, wire.Identity) error {
	var failed []error
	for _, path := range []string{
		"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/random-seed",
		"var/lib/seedrng/seed.credit", "var/lib/seedrng/seed.no-credit",
	} {
		failed = append(failed, remove(g.path(path)))
	}
	return errors.Join(failed...)
}
