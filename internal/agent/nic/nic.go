// Package nic configures the guest's one network interface through rtnetlink:
// at boot, as the kernel command line says, and again when the guest is a copy
// that has to leave its original's place on the network.
//
// What the guest's own network services do with the interface is theirs; which
// of their files name it is internal/agent/identity's to know. Start at
// [Place.Apply] and [Place.Move].
package nic

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Place is an interface's place on its network.
type Place struct {
	MAC     net.HardwareAddr
	Address netip.Prefix
	Gateway netip.Addr // the zero value: no default route
}

// Apply gives the interface the address and the route, and brings it up.
func (p Place) Apply(link netlink.Link) error {
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p.Address)}); err != nil {
		return fmt.Errorf("cannot set the address %s: %w", p.Address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring up %s: %w", link.Attrs().Name, err)
	}
	if !p.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: p.Gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("cannot set the route by %s: %w", p.Gateway, err)
	}
	return nil
}

// Move takes the interface from the place that it has to p.
func (p Place) Move(link netlink.Link) error {
	if err := p.Leave(link); err != nil {
		return err
	}
	return p.insist(link)
}

// Leave takes the interface out of the place that it has: it is down, without an
// address, and has p's MAC. With the old addresses go the connections that were
// made from them, and routes and neighbours with what was up.
func (p Place) Leave(link netlink.Link) error {
	name := link.Attrs().Name
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("cannot take %s down: %w", name, err)
	}
	if err := netlink.LinkSetHardwareAddr(link, p.MAC); err != nil {
		return fmt.Errorf("cannot give %s the MAC %s: %w", name, p.MAC, err)
	}
	return clearAddresses(link)
}

// insistTries bounds how often the place is taken.
const insistTries = 5

// insist applies p again when the address was gone before the route: a network
// service that has seen the interface go down drops what it finds there.
func (p Place) insist(link netlink.Link) (err error) {
	for range insistTries {
		if err = p.Apply(link); !errors.Is(err, unix.ENETUNREACH) {
			return err
		}
	}
	return err
}

func clearAddresses(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil && !gone(link, a) {
			return fmt.Errorf("cannot drop the address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// gone reports whether an address went by itself, as an IPv6 one does with its
// interface, or a second one with the first.
func gone(link netlink.Link, addr netlink.Addr) bool {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if a.Equal(addr) {
			return false
		}
	}
	return true
}

// Addresses returns those of the interface, without link-local ones.
func Addresses(link netlink.Link) ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	var found []netip.Prefix
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || addr.IsLinkLocalUnicast() {
			continue
		}
		bits, _ := a.Mask.Size()
		found = append(found, netip.PrefixFrom(addr.Unmap(), bits))
	}
	return found, nil
}

// ByMAC returns the interface with the MAC, or nil.
func ByMAC(mac net.HardwareAddr) netlink.Link {
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

// Own returns the interface of the machine itself, whatever its name and its
// MAC: what else a guest may have, such as bridges and tunnels, has no device.
// Of several devices it is the one with the MAC. sys is /sys.
func Own(sys string, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("cannot list the interfaces: %w", err)
	}
	var own []netlink.Link
	var names []string
	for _, l := range links {
		name := l.Attrs().Name
		if _, err := os.Stat(filepath.Join(sys, "class/net", name, "device")); err != nil {
			continue
		}
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
		own, names = append(own, l), append(names, name)
	}
	switch len(own) {
	case 0:
		return nil, errors.New("there is no network interface")
	case 1:
		return own[0], nil
	default:
		return nil, fmt.Errorf("there are several network interfaces (%s), and none has the MAC %s", strings.Join(names, ", "), mac)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
