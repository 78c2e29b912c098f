package boot

import (
	"bytes"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// configureNetwork brings up loopback and, unless n is nil, the interface.
func configureNetwork(n *nic, devices *uevent.Listener) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("cannot bring up loopback: %w", err)
	}
	if n == nil {
		return nil
	}
	var link netlink.Link
	found := devices.Await(nicPatience, func() bool {
		link = linkByMAC(n.mac)
		return link != nil
	})
	if !found {
		return fmt.Errorf("no interface with the address %s has appeared", n.mac)
	}
	return n.apply(link)
}

func linkByMAC(mac net.HardwareAddr) netlink.Link {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l
		}
	}
	return nil
}

func (n *nic) apply(link netlink.Link) error {
	ipNet := &net.IPNet{IP: n.address.Addr().AsSlice(), Mask: net.CIDRMask(n.address.Bits(), n.address.Addr().BitLen())}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet}); err != nil {
		return fmt.Errorf("cannot set the address %s: %w", n.address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring up %s: %w", link.Attrs().Name, err)
	}
	if !n.gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("cannot set the route by %s: %w", n.gateway, err)
	}
	return nil
}
