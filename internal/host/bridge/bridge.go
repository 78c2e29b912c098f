// Package bridge makes the Linux bridge of a network and the TAPs on it.
//
// Each TAP is a port that is isolated from its neighbours, learns nothing and
// is flooded with broadcasts only; static entries tell the bridge where a guest
// is. Every setting is read back, and a wrong value is an error.
//
// It writes no packet rules (internal/host/nft) and serves no addresses
// (internal/host/dhcp). All calls act on the network namespace of the calling
// thread. Start at [New], then [Bridge.Ensure] and [Bridge.Join].
package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

// alias marks a bridge that this package made; [Bridge.Remove] removes no other.
// aliasForwarding is the alias if the host did not forward packets before.
const (
	alias           = "made by hatchd"
	aliasForwarding = "made by hatchd, which turned forwarding on"
)

// DefaultMTU is the MTU of guests on a host whose uplink can carry it.
const DefaultMTU = 1500

// Bridge is one network's bridge. It holds no state: the kernel does. Its
// methods may be called from several goroutines at once.
type Bridge struct {
	net network.Network
	mtu int
}

// New returns the bridge of n, whether it exists or not. mtu is in bytes, for
// the bridge and its ports; 0 means DefaultMTU.
func New(n network.Network, mtu int) *Bridge {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	return &Bridge{net: n, mtu: mtu}
}

// MAC returns the bridge's own hardware address. It is fixed, so that guests
// that slept find their gateway again.
func (b *Bridge) MAC() net.HardwareAddr { return b.net.MAC(b.net.Gateway) }

// Ensure makes the bridge if it is missing, gives it the gateway's address,
// turns on forwarding, and checks the result.
//
// Errors: errs.Conflict with code bridge_name_taken or bridge_address_differs
// when an interface of this name is not the bridge that the network needs.
func (b *Bridge) Ensure() error {
	link, err := b.find()
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = b.create(); err != nil {
			return err
		}
	}
	if err := b.refuseForeign(link); err != nil {
		return err
	}
	if err := b.configure(link); err != nil {
		return err
	}
	return b.Check()
}

// Routes reports whether the host forwarded packets before the bridge was made: then
// it is a router for other programs too.
func (b *Bridge) Routes() (bool, error) {
	if b.forwarding().check() != nil {
		return false, nil
	}
	link, err := b.find()
	if err != nil || link == nil {
		return true, err
	}
	return link.Attrs().Alias != aliasForwarding, nil
}

// Check reads back everything that Ensure sets.
func (b *Bridge) Check() error {
	link, err := b.find()
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("bridge %s is missing", b.net.Bridge)
	}
	if err := b.refuseForeign(link); err != nil {
		return err
	}
	attrs := link.Attrs()
	switch {
	case attrs.Flags&net.FlagUp == 0:
		return fmt.Errorf("bridge %s is down", b.net.Bridge)
	case attrs.HardwareAddr.String() != b.MAC().String():
		return fmt.Errorf("bridge %s has the hardware address %s instead of %s", b.net.Bridge, attrs.HardwareAddr, b.MAC())
	case attrs.MTU != b.mtu:
		return fmt.Errorf("bridge %s has an MTU of %d instead of %d", b.net.Bridge, attrs.MTU, b.mtu)
	}
	has, err := b.hasGateway(link)
	if err != nil {
		return err
	}
	if !has {
		return fmt.Errorf("bridge %s does not carry its address %s", b.net.Bridge, b.gateway())
	}
	for _, s := range b.sysctls() {
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes the bridge if this package made it, and the TAPs on it, and turns
// forwarding off if Ensure turned it on. Interfaces that another program made are left
// alone.
func (b *Bridge) Remove() error {
	link, err := b.find()
	if err != nil || link == nil {
		return err
	}
	if link.Type() != "bridge" || link.Attrs().Alias != alias && link.Attrs().Alias != aliasForwarding {
		return nil
	}
	ports, err := b.ports(link)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if !b.ours(p) {
			continue
		}
		if err := netlink.LinkDel(p); err != nil && !gone(err) {
			return fmt.Errorf("cannot delete TAP %s: %w", p.Attrs().Name, err)
		}
	}
	if err := netlink.LinkDel(link); err != nil && !gone(err) {
		return fmt.Errorf("cannot delete bridge %s: %w", b.net.Bridge, err)
	}
	if link.Attrs().Alias == aliasForwarding {
		return sysctl{b.forwarding().name, "0"}.apply()
	}
	return nil
}

// find returns the interface with the bridge's name, nil when there is none.
func (b *Bridge) find() (netlink.Link, error) {
	link, err := netlink.LinkByName(b.net.Bridge)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look up interface %s: %w", b.net.Bridge, err)
	}
	return link, nil
}

func (b *Bridge) create() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.net.Bridge, b.mtu, b.MAC()
	snooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return nil, fmt.Errorf("cannot make bridge %s: %w", b.net.Bridge, err)
	}
	link, err := netlink.LinkByName(b.net.Bridge)
	if err != nil {
		return nil, fmt.Errorf("cannot look up bridge %s: %w", b.net.Bridge, err)
	}
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("cannot mark bridge %s: %w", b.net.Bridge, err)
	}
	link.Attrs().Alias = alias
	return link, nil
}

// refuseForeign returns an error when link is not a bridge, carries an IPv4
// address that is not the gateway's, or has ports that are not ours.
func (b *Bridge) refuseForeign(link netlink.Link) error {
	name := b.net.Bridge
	if link.Type() != "bridge" {
		return errs.New(errs.Conflict, "bridge_name_taken", "interface %s exists and is no bridge (it is of type %s)", name, link.Type()).
			WithHint("set HATCH_BRIDGE_NAME to a name that is free, or delete the interface: ip link delete %s", name)
	}
	addrs, err := b.addresses(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.IPNet.String() != b.gateway().String() {
			return errs.New(errs.Conflict, "bridge_address_differs", "bridge %s carries the address %s; the network needs %s", name, a.IPNet, b.gateway()).
				WithHint("set HATCH_BRIDGE_CIDR=%s, or HATCH_BRIDGE_NAME to a name that is free, or take the address away: ip address delete %s dev %s", a.IPNet, a.IPNet, name)
		}
	}
	ports, err := b.ports(link)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if !b.ours(p) {
			return errs.New(errs.Conflict, "bridge_has_foreign_ports", "bridge %s has the port %s, which belongs to no VM", name, p.Attrs().Name).
				WithHint("set HATCH_BRIDGE_NAME to a name that is free, or take the port off: ip link set %s nomaster", p.Attrs().Name)
		}
	}
	return nil
}

func (b *Bridge) configure(link netlink.Link) error {
	if err := netlink.LinkSetHardwareAddr(link, b.MAC()); err != nil {
		return fmt.Errorf("cannot set the hardware address of bridge %s: %w", b.net.Bridge, err)
	}
	if err := netlink.LinkSetMTU(link, b.mtu); err != nil {
		return fmt.Errorf("cannot set the MTU of bridge %s: %w", b.net.Bridge, err)
	}
	if err := b.turnForwardingOn(link); err != nil {
		return err
	}
	for _, s := range b.sysctls() {
		if err := s.apply(); err != nil {
			return err
		}
	}
	has, err := b.hasGateway(link)
	if err != nil {
		return err
	}
	if !has {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: b.gateway()}); err != nil {
			return fmt.Errorf("cannot give bridge %s the address %s: %w", b.net.Bridge, b.gateway(), err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring up bridge %s: %w", b.net.Bridge, err)
	}
	return nil
}

// turnForwardingOn lets the host pass guests' packets on. It first marks the bridge
// if forwarding was off, unless another program made the bridge.
func (b *Bridge) turnForwardingOn(link netlink.Link) error {
	if b.forwarding().check() == nil {
		return nil
	}
	if link.Attrs().Alias == alias {
		if err := netlink.LinkSetAlias(link, aliasForwarding); err != nil {
			return fmt.Errorf("cannot mark bridge %s: %w", b.net.Bridge, err)
		}
	}
	return b.forwarding().apply()
}

func (b *Bridge) hasGateway(link netlink.Link) (bool, error) {
	addrs, err := b.addresses(link)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if a.IPNet.String() == b.gateway().String() {
			return true, nil
		}
	}
	return false, nil
}

func (b *Bridge) addresses(link netlink.Link) ([]netlink.Addr, error) {
	addrs, err := List(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("cannot read the addresses of %s: %w", b.net.Bridge, err)
	}
	return addrs, nil
}

func (b *Bridge) gateway() *net.IPNet { return ipNet(b.net.Gateway, b.net.Prefix.Bits()) }

func (b *Bridge) ports(link netlink.Link) ([]netlink.Link, error) {
	all, err := List(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("cannot list interfaces: %w", err)
	}
	var ports []netlink.Link
	for _, l := range all {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			ports = append(ports, l)
		}
	}
	return ports, nil
}

// ours tells whether link is a TAP that this package opened for this network.
func (b *Bridge) ours(link netlink.Link) bool {
	return link.Type() == "tuntap" && link.Attrs().Group == b.net.PortGroup()
}

// List reads a list from the kernel, again when it changed during the read.
func List[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 10
	for range attempts - 1 {
		items, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return list()
}

func ipNet(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: net.IP(addr.AsSlice()), Mask: net.CIDRMask(bits, addr.BitLen())}
}
