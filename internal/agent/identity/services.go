package identity

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

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

// hasNetworkd reports whether networkd runs and has set up the interface.
func (g *Guest) hasNetworkd(index int) bool {
	if _, err := os.Lstat(g.path("run/systemd/units/invocation:systemd-networkd.service")); err != nil {
		return false
	}
	state, err := os.ReadFile(g.path("run/systemd/netif/links", strconv.Itoa(index)))
	return err == nil && bytes.Contains(state, []byte("\nNETWORK_FILE="))
}

// restartNetworkServices has the guest's own DHCP client ask for the new lease,
// and waits until the address is there.
func (g *Guest) restartNetworkServices(ctx context.Context, as wire.Identity) error {
	if as.NIC == nil || !g.hasSystemd() {
		return nil
	}
	units := slices.DeleteFunc(slices.Clone(networkServices), func(unit string) bool { return !g.hasUnit(unit) })
	if len(units) == 0 {
		return nil
	}
	p, link, err := g.ownNIC(as.NIC)
	if err != nil {
		return err
	}
	lease, err := g.forgetLease(link.Attrs().Index)
	if err != nil {
		return err
	}
	if err := g.run(ctx, serviceTime, g.program("systemctl"), append([]string{"try-restart"}, units...)...); err != nil {
		return err
	}
	if g.awaitAddress(ctx, link, p.Address, lease) {
		return nil
	}
	g.log.Warn("the guest's own network service has not taken its address; it is set once more")
	return p.Apply(link)
}

// forgetLease drops the file of networkd's lease, and returns where the new one
// will be, or "" when networkd has none.
func (g *Guest) forgetLease(index int) (path string, err error) {
	path = g.path("run/systemd/netif/leases", strconv.Itoa(index))
	err = os.Remove(path)
	if absent(err) {
		return "", nil
	}
	return path, err
}

// leased reports whether a file of networkd's says that it has the address.
func leased(path string, address netip.Addr) bool {
	text, err := os.ReadFile(path)
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), "ADDRESS="+address.String())
}

// awaitAddress reports whether the interface has its address within the time for
// it, from a lease where there is to be one.
func (g *Guest) awaitAddress(ctx context.Context, link netlink.Link, address netip.Prefix, lease string) bool {
	ctx, cancel := context.WithTimeout(ctx, addressTime)
	defer cancel()
	look := time.NewTicker(addressLook)
	defer look.Stop()
	for {
		has, err := nic.Addresses(link)
		if err == nil && slices.Contains(has, address) && (lease == "" || leased(lease, address.Addr())) {
			return true
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
	}
}

// Settle does what can wait until the guest has confirmed: journald begins new
// files, with the new machine id, and cloud-init runs if as says so.
func (g *Guest) Settle(ctx context.Context, as wire.Identity) {
	if g.hasSystemd() && g.machineID() != "" {
		err := g.run(ctx, serviceTime, g.program("systemctl"), "try-restart", "systemd-journald.service")
		if err != nil && ctx.Err() == nil {
			g.log.Error("journald keeps the original's machine id", "err", err)
		}
	}
	if as.CloudInit || as.SSHKeys {
		g.runCloudInit(ctx)
	}
}

// hasUnit reports whether the image has a unit of systemd that is not masked, as
// by a link to /dev/null in the place that counts first.
func (g *Guest) hasUnit(name string) bool {
	for _, dir := range []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/generator.late"} {
		path := g.path(dir, name)
		if target, err := os.Readlink(path); err == nil && target == os.DevNull {
			return false
		}
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}
