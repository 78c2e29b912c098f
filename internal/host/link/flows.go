package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ofAddress matches the kernel's entries of connections from or to an address.
type ofAddress net.IP

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (a ofAddress) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	is := net.IP(a).Equal
	return is(f.Forward.SrcIP) || is(f.Forward.DstIP) || is(f.Reverse.SrcIP) || is(f.Reverse.DstIP)
}

// endConnections makes the kernel forget the connections of a guest's address: packets
// that still come for them are no answers any more.
func endConnections(addr netip.Addr) error {
	const attempts = 10 // the list may change while the kernel sends it
	var err error
	for range attempts {
		_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, ofAddress(addr.AsSlice()))
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("cannot end the connections of %s: %w", addr, err)
	}
	return nil
}
