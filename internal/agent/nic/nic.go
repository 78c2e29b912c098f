// Package nic configures the guest's one network interface through rtnetlink: at
// boot from the kernel command line, and again in a clone, which must not keep the
// addresses of its original.
//
// It does not know the guest's network services; internal/agent/identity changes their
// files. Start at [Config.Apply] and [Config.Replace].
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

// Config is the configuration of an interface.
type Config struct {
	MAC     net.HardwareAddr
	Address netip.Prefix
	Gateway netip.Addr // the zero value means no default route
}

// Apply adds the address and the route to the interface, and sets it up.
func (c Config) Apply(link netlink.Link) error {
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(c.Address)}); err != nil {
		return fmt.Errorf("cannot set the address %s: %w", c.Address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot set up %s: %w", link.Attrs().Name, err)
	}
	if !c.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.Gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("cannot set the default route through %s: %w", c.Gateway, err)
	}
	return nil
}

// applyAttempts limits how often Replace applies the configuration.
const applyAttempts = 5

// Replace replaces the interface's configuration. It applies the new one again if the
// address is gone before the route is set: a network service that has seen the
// interface go down removes addresses.
func (c Config) Replace(link netlink.Link) error {
	err := c.Reset(link)
	if err != nil {
		return err
	}
	for range applyAttempts {
		if err = c.Apply(link); !errors.Is(err, unix.ENETUNREACH) {
			break
		}
	}
	return err
}

// Reset sets the interface down, gives it c's MAC, and removes its addresses. The
// kernel then drops the connections from these addresses, the routes and the
// neighbours.
func (c Config) Reset(link netlink.Link) error {
	name := link.Attrs().Name
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("cannot set down %s: %w", name, err)
	}
	if err := netlink.LinkSetHardwareAddr(link, c.MAC); err != nil {
		return fmt.Errorf("cannot give %s the MAC %s: %w", name, c.MAC, err)
	}
	return clearAddresses(link)
}

func clearAddresses(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil && !gone(link, a) {
			return fmt.Errorf("cannot remove the address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// gone reports whether the kernel has removed an address itself: an IPv6 one when its
// interface is set down, or a secondary one with its primary.
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

// Addresses returns the interface's addresses, except link-local ones.
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

// Physical returns the guest's interface that has a device, unlike bridges and
// tunnels. If several have one, it returns the one with the MAC. sys is /sys.
func Physical(sys string, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("cannot list the interfaces: %w", err)
	}
	var found []netlink.Link
	var names []string
	for _, l := range links {
		name := l.Attrs().Name
		if _, err := os.Stat(filepath.Join(sys, "class/net", name, "device")); err != nil {
			continue
		}
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
		found, names = append(found, l), append(names, name)
	}
	switch len(found) {
	case 0:
		return nil, errors.New("the guest has no network interface")
	case 1:
		return found[0], nil
	default:
		return nil, fmt.Errorf("the guest has several network interfaces (%s), and none has the MAC %s", strings.Join(names, ", "), mac)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
