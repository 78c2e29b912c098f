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
	"github.com/hatchvm/hatch/internal/logkey"
)

// networkFiles are files in which an image's network services, or cloud-init for them,
// identify an interface by its MAC.
var networkFiles = []string{
	"etc/systemd/network/*.network", "etc/systemd/network/*.link",
	"run/systemd/network/*.network", "run/systemd/network/*.link",
	"etc/netplan/*.yaml", "run/netplan/*.yaml",
	"etc/NetworkManager/system-connections/*", "run/NetworkManager/system-connections/*",
	"etc/network/interfaces", "etc/network/interfaces.d/*",
	"etc/sysconfig/network-scripts/ifcfg-*", "etc/udev/rules.d/*net*.rules",
}

// replaceMAC replaces a MAC in the files of the guest's network services, in lower and
// upper case.
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

const (
	serviceTimeout  = 60 * time.Second
	addressTimeout  = 20 * time.Second // for DHCP, on a busy host
	addressInterval = 20 * time.Millisecond
)

// networkServices may have the original's DHCP lease or its MAC. Only those that run
// are restarted.
var networkServices = []string{"systemd-networkd.service", "NetworkManager.service", "networking.service", "dhcpcd.service"}

// hasSystemd reports whether systemd is the guest's init.
func (g *Guest) hasSystemd() bool {
	_, err := os.Stat(g.path("run/systemd/system"))
	return err == nil && g.program("systemctl") != ""
}

// hasNetworkd reports whether networkd runs and manages the interface.
func (g *Guest) hasNetworkd(index int) bool {
	if _, err := os.Lstat(g.path("run/systemd/units/invocation:systemd-networkd.service")); err != nil {
		return false
	}
	state, err := os.ReadFile(g.path("run/systemd/netif/links", strconv.Itoa(index)))
	return err == nil && bytes.Contains(state, []byte("\nNETWORK_FILE="))
}

// restartNetworkServices restarts the guest's network services, so that a DHCP client
// requests a new lease, and waits until the interface has its address.
func (g *Guest) restartNetworkServices(ctx context.Context, as wire.Identity) error {
	if as.NIC == nil || !g.hasSystemd() {
		return nil
	}
	units := slices.DeleteFunc(slices.Clone(networkServices), func(unit string) bool { return !g.hasUnit(unit) })
	if len(units) == 0 {
		return nil
	}
	config, link, err := g.findNIC(as.NIC)
	if err != nil {
		return err
	}
	lease, err := g.removeLease(link.Attrs().Index)
	if err != nil {
		return err
	}
	if err := g.run(ctx, serviceTimeout, g.program("systemctl"), append([]string{"try-restart"}, units...)...); err != nil {
		return err
	}
	if g.awaitAddress(ctx, link, config.Address, lease) {
		return nil
	}
	g.log.Warn("the guest's network service has not set its address; the agent sets it")
	return config.Apply(link)
}

// removeLease removes the file of networkd's lease, and returns the path at which
// networkd will write a new one, or "" if it had none.
func (g *Guest) removeLease(index int) (path string, err error) {
	path = g.path("run/systemd/netif/leases", strconv.Itoa(index))
	err = os.Remove(path)
	if absent(err) {
		return "", nil
	}
	return path, err
}

// leased reports whether a lease file of networkd has the address.
func leased(path string, address netip.Addr) bool {
	text, err := os.ReadFile(path)
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), "ADDRESS="+address.String())
}

// awaitAddress waits until the interface has the address, and the file lease has it,
// too, unless lease is "". It reports whether they do within addressTimeout.
func (g *Guest) awaitAddress(ctx context.Context, link netlink.Link, address netip.Prefix, lease string) bool {
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	tick := time.NewTicker(addressInterval)
	defer tick.Stop()
	for {
		has, err := nic.Addresses(link)
		if err == nil && slices.Contains(has, address) && (lease == "" || leased(lease, address.Addr())) {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// Finish does what can follow the guest's confirmation: it restarts journald, which
// then writes new files with the new machine id, and runs cloud-init if as requires it.
func (g *Guest) Finish(ctx context.Context, as wire.Identity) {
	if g.hasSystemd() && g.machineID() != "" {
		err := g.run(ctx, serviceTimeout, g.program("systemctl"), "try-restart", "systemd-journald.service")
		if err != nil && ctx.Err() == nil {
			g.log.Error("cannot restart journald; it keeps the original's machine id", logkey.Error, err)
		}
	}
	if as.CloudInit || as.SSHKeys {
		g.runCloudInit(ctx)
	}
}

// hasUnit reports whether the image has a unit of systemd that is not masked by a link
// to /dev/null.
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
