// Package identity makes a guest that is a copy of another one itself: its own
// place on the network, hostname, machine id, SSH host keys and cloud-init
// instance instead of those that it was copied with.
//
// The clock and the kernel's randomness come first and are internal/agent's; so
// is what is spoken with the host. What an image lacks is passed over, and
// what cannot be done says so in words for the host. Start at [Guest.Take],
// whose steps are in order.
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

// Guest is the guest whose root is at a path.
type Guest struct {
	root   string
	log    *slog.Logger
	kernel kernel
}

// kernel is what cannot be had below another root.
type kernel struct {
	hostname    func() (string, error)
	setHostname func(name string) error
	dropCache   func(device string) error
	unmount     func(path string) error
	hangUp      func(pid int) error
}

// New returns the guest that this process is in.
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

// Take makes the guest what as says, and returns who it is then. It may be
// called again after a failure. The network comes late: with the original's MAC
// and address nothing of the guest gets out, and once it has its own it is itself.
func (g *Guest) Take(ctx context.Context, as wire.Identity) (wire.Self, error) {
	for _, step := range []struct {
		name string
		do   func(context.Context, wire.Identity) error
	}{
		{"the hostname", g.rename},
		{"the machine id", g.renewMachineID},
		{"the SSH host keys", g.renewHostKeys},
		{"the stored randomness", g.forgetRandomness},
		{"cloud-init", g.moveInstance},
		{"the network", g.moveNIC},
		{"the network services", g.restartNetworkServices},
	} {
		if err := step.do(ctx, as); err != nil {
			return wire.Self{}, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return g.self(as)
}

// ownNIC returns the guest's interface, and its place by n, which the protocol
// has checked already.
func (g *Guest) ownNIC(n *wire.NIC) (nic.Place, netlink.Link, error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return nic.Place{}, nil, err
	}
	link, err := nic.Own(g.path("sys"), mac)
	return nic.Place{MAC: mac, Address: n.Address, Gateway: n.Gateway}, link, err
}

// moveNIC takes the original's MAC out of the files of the guest's network
// services before the interface has another. What networkd has set up stays down
// until networkd begins anew: it would drop, at a moment of its own, an address
// that it has not set itself.
func (g *Guest) moveNIC(_ context.Context, as wire.Identity) error {
	if as.NIC == nil {
		return nil
	}
	p, link, err := g.ownNIC(as.NIC)
	if err != nil {
		return err
	}
	if err := g.replaceMAC(link.Attrs().HardwareAddr, p.MAC); err != nil {
		return err
	}
	if g.hasNetworkd(link.Attrs().Index) {
		return p.Leave(link)
	}
	return p.Move(link)
}

// self tells who the guest is: its interface and its files are asked, not as.
func (g *Guest) self(as wire.Identity) (wire.Self, error) {
	name, err := g.kernel.hostname()
	if err != nil {
		return wire.Self{}, err
	}
	self := wire.Self{Hostname: name, MachineID: g.machineID()}
	if as.NIC == nil {
		return self, nil
	}
	_, link, err := g.ownNIC(as.NIC)
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

// forgetRandomness drops what an init has put by for the next boot: the
// original has the same.
func (g *Guest) forgetRandomness(context.Context, wire.Identity) error {
	var faults []error
	for _, path := range []string{
		"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/random-seed",
		"var/lib/seedrng/seed.credit", "var/lib/seedrng/seed.no-credit",
	} {
		faults = append(faults, remove(g.path(path)))
	}
	return errors.Join(faults...)
}
