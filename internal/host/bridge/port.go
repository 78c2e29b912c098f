package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// Port is a TAP and the one guest behind it.
type Port struct {
	TAP     string
	MAC     net.HardwareAddr
	Address netip.Addr
}

// Join puts an existing TAP on the bridge: isolated, without learning and
// flooding, with IPv6 off and static entries for the guest, and up. All of it
// is read back. Joining again is no error. After an error the port may be
// incomplete; [Bridge.Leave] undoes it.
//
// Errors: errs.NotFound with code tap_missing, errs.Conflict with code
// tap_foreign or guest_mac_taken.
func (b *Bridge) Join(p Port) error {
	br, err := b.find()
	if err != nil {
		return err
	}
	if br == nil {
		return fmt.Errorf("bridge %s is missing", b.net.Bridge)
	}
	if p.MAC.String() == br.Attrs().HardwareAddr.String() {
		return errs.New(errs.Conflict, "guest_mac_taken", "the MAC %s is the host's own on this network", p.MAC)
	}
	tap, err := b.tap(p.TAP, br)
	if err != nil {
		return err
	}
	index, bridge := tap.Attrs().Index, br.Attrs().Index
	if err := b.setUpPort(p, index, bridge); err != nil {
		return err
	}
	return b.verify(p, index, bridge)
}

// setUpPort writes all settings. No frame passes before the last one, which sets
// the port up.
func (b *Bridge) setUpPort(p Port, index, bridge int) error {
	if err := enslave(index, bridge, b.net.PortGroup(), b.mtu); err != nil {
		return fmt.Errorf("cannot put TAP %s on bridge %s: %w", p.TAP, b.net.Bridge, err)
	}
	if err := setPortFlags(index, guestPort); err != nil {
		return fmt.Errorf("cannot isolate TAP %s: %w", p.TAP, err)
	}
	for _, s := range noIPv6(p.TAP) {
		if err := s.apply(); err != nil {
			return err
		}
	}
	if err := netlink.NeighSet(p.forwarding(index)); err != nil {
		return fmt.Errorf("cannot tell bridge %s where %s is: %w", b.net.Bridge, p.MAC, err)
	}
	if err := netlink.NeighSet(p.neighbour(bridge)); err != nil {
		return fmt.Errorf("cannot bind %s to %s: %w", p.Address, p.MAC, err)
	}
	if err := netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}); err != nil {
		return fmt.Errorf("cannot bring up TAP %s: %w", p.TAP, err)
	}
	return nil
}

// verify reads back what setUpPort wrote.
func (b *Bridge) verify(p Port, index, bridge int) error {
	got, err := readPort(index)
	if err != nil {
		return fmt.Errorf("cannot read back TAP %s: %w", p.TAP, err)
	}
	want := portState{master: bridge, group: b.net.PortGroup(), mtu: b.mtu, up: true, flags: guestPort}
	if got != want {
		return fmt.Errorf("TAP %s is %+v and must be %+v", p.TAP, got, want)
	}
	for _, s := range noIPv6(p.TAP) {
		if err := s.check(); err != nil {
			return err
		}
	}
	if err := checkForwarding(index, p.MAC); err != nil {
		return fmt.Errorf("bridge %s does not know where %s is: %w", b.net.Bridge, p.MAC, err)
	}
	if err := checkNeighbour(bridge, p.Address, p.MAC); err != nil {
		return fmt.Errorf("%s is not bound to %s: %w", p.Address, p.MAC, err)
	}
	return nil
}

// CheckPort reads back everything that Join sets.
//
// Errors: errs.NotFound with code tap_missing when the TAP does not exist, as when its
// VMM has ended; errs.Conflict with code tap_foreign.
func (b *Bridge) CheckPort(p Port) error {
	br, err := b.find()
	if err != nil {
		return err
	}
	if br == nil {
		return fmt.Errorf("bridge %s is missing", b.net.Bridge)
	}
	tap, err := b.tap(p.TAP, br)
	if err != nil {
		return err
	}
	return b.verify(p, tap.Attrs().Index, br.Attrs().Index)
}

// Leave removes the guest's entries, and the TAP if a process still has it open.
// Nothing to remove is no error; a TAP that is not ours is left alone.
func (b *Bridge) Leave(p Port) error {
	br, err := b.find()
	if err != nil {
		return err
	}
	var failed error
	if br != nil {
		if err := netlink.NeighDel(p.neighbour(br.Attrs().Index)); err != nil && !gone(err) {
			failed = fmt.Errorf("cannot remove the neighbour entry of %s: %w", p.Address, err)
		}
	}
	tap, err := netlink.LinkByName(p.TAP)
	switch {
	case isNotFound(err):
		return failed
	case err != nil:
		return errors.Join(failed, fmt.Errorf("cannot look up TAP %s: %w", p.TAP, err))
	case !b.ours(tap):
		return failed
	}
	if err := netlink.LinkDel(tap); err != nil && !gone(err) {
		failed = errors.Join(failed, fmt.Errorf("cannot delete TAP %s: %w", p.TAP, err))
	}
	return failed
}

// tap returns the interface of this name, which must be a TAP that is on this
// bridge or on none.
func (b *Bridge) tap(name string, br netlink.Link) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil, errs.New(errs.NotFound, "tap_missing", "the TAP %s does not exist", name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look up TAP %s: %w", name, err)
	}
	tun, ok := link.(*netlink.Tuntap)
	if !ok || tun.Mode != netlink.TUNTAP_MODE_TAP {
		return nil, errs.New(errs.Conflict, "tap_foreign", "interface %s exists and is no TAP", name)
	}
	if m := link.Attrs().MasterIndex; m != 0 && m != br.Attrs().Index {
		return nil, errs.New(errs.Conflict, "tap_foreign", "the TAP %s is on another bridge", name)
	}
	return link, nil
}

// forwarding is the bridge's entry that says which port the guest's MAC is behind.
func (p Port) forwarding(port int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: port, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: p.MAC,
	}
}

// neighbour is the host's entry that says which MAC the guest's address has.
func (p Port) neighbour(bridge int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: bridge, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: net.IP(p.Address.AsSlice()), HardwareAddr: p.MAC,
	}
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// gone reports whether err means that there was nothing to delete.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}
