package identity

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/agent/nic"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// networkFiles are where an image's network services, and cloud-init for them,
// name an interface by its MAC.
var networkFiles = []string{
	"etc/systemd/network/*.network", "etc/systemd/network/*.link",
	"run/systemd/network/*.network", "run/systemd/network/*.link",
	"etc/netplan/*.yaml", "run/netplan/*.yaml",
	"etc/NetworkManager/system-connections/*", "run/NetworkManager/system-connections/*",
	"etc/network/interfaces", "etc/network/interfaces.d/*",
	"etc/sysconfig/network-scripts/ifcfg-*", "etc/udev/rules.d/*net*.rules",
}

// replaceMAC takes a MAC out of the files of the guest's network services, in
// whatever case it is written, and puts another in its place.
func (g *Guest) replaceMAC(old, mac net.HardwareAddr) error {
	if bytes.Equal(old, mac) {
		return nil
	}
	lower, upper := old.String(), strings.ToUpper(old.String())
	change := func(text []byte) []byte {
		text = bytes.ReplaceAll(text, []byte(lower), []byte(mac.String()))
		return bytes.ReplaceAll(text, []byte(upper), []byte(strings.ToUpper(mac.String())))
	}
	for _, pattern := range networkFiles {
		paths, err := filepath.Glob(g.path(pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := edit(path, change); err != nil {
				return err
			}
		}
	}
	return nil
}

// Bounds of the restart of network services.
const (
	serviceTime = 60 * time.Second
	addressTime = 20 * time.Second // until DHCP has answered, on a busy host
	addressLook = 20 * time.Millisecond
)

// networkServices are those that may hold the original's lease, or its MAC. Only
// what runs is restarted.
var networkServices = []string{"systemd-networkd.service", "NetworkManager.service", "networking.service", "dhcpcd.service"}

// hasSystemd reports whether systemd is the guest's init.
func (g *Guest) hasSystemd() bool {
	_, err := os.Stat(g.path("run/systemd/system"))
	return err == nil && g.program("systemctl") != ""
}

// restartNetworkServices has the guest's own DHCP client ask for the new lease,
// and waits for it: a service that restarts may drop the address meanwhile.
func (g *Guest) restartNetworkServices(ctx context.Context, as wire.Identity) error {
	if as.NIC == nil || !g.hasSystemd() {
		return nil
	}
	running := slices.DeleteFunc(slices.Clone(networkServices), func(unit string) bool { return !g.hasUnit(unit) })
	if len(running) == 0 {
		return nil
	}
	if err := g.run(ctx, serviceTime, g.program("systemctl"), append([]string{"try-restart"}, running...)...); err != nil {
		return err
	}
	if g.awaitAddress(ctx, as.NIC) {
		return nil
	}
	g.log.Warn("the guest's own network service has not taken its address; it is set once more")
	p, err := place(as.NIC)
	if err != nil {
		return err
	}
	link, err := nic.Own(g.path("sys"), p.MAC)
	if err != nil {
		return err
	}
	return p.Apply(link)
}

// hasUnit reports whether the image has a unit of systemd.
func (g *Guest) hasUnit(name string) bool {
	for _, dir := range []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/generator.late"} {
		if _, err := os.Stat(g.path(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// awaitAddress reports whether the interface has its address within its time.
func (g *Guest) awaitAddress(ctx context.Context, n *wire.NIC) bool {
	ctx, cancel := context.WithTimeout(ctx, addressTime)
	defer cancel()
	look := time.NewTicker(addressLook)
	defer look.Stop()
	for {
		if _, addresses, err := g.ownAddresses(n); err == nil && slices.Contains(addresses, n.Address) {
			return true
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
}
