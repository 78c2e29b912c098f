package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What nl lacks of the kernel's interface to connections.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	ctaFilterSource     = 1 << 0
	ctaFilterTarget     = 1 << 1
	attributeType       = 1<<14 - 1 // without flags
)

// side is where the kernel's entry of a connection has an address.
type side struct {
	tuple, address uint16 // attributes
	flags          uint16 // attribute of the filter
	filter         uint32
}

// sides are those of a guest's address: it began the connection, it was meant, or the
// host's own rules led the connection to it.
var sides = []side{
	{nl.CTA_TUPLE_ORIG, nl.CTA_IP_V4_SRC, ctaFilterOrigFlags, ctaFilterSource},
	{nl.CTA_TUPLE_ORIG, nl.CTA_IP_V4_DST, ctaFilterOrigFlags, ctaFilterTarget},
	{nl.CTA_TUPLE_REPLY, nl.CTA_IP_V4_SRC, ctaFilterReplyFlags, ctaFilterSource},
}

// connectionsHeader begins requests about IPv4 connections: the family, a version, and
// an id that is not used.
var connectionsHeader = []byte{unix.AF_INET, 0, 0, 0}

// endConnections makes the kernel forget the connections of a guest's address: packets
// that still come for them are no answers any more. The kernel selects them (Linux 5.8
// and later), because the host may have hundreds of thousands of others.
func endConnections(addr netip.Addr) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("cannot end the connections of %s: %w", addr, err)
	}
	defer conn.Close()
	for _, side := range sides {
		found, err := side.connections(conn, addr)
		if err != nil {
			return fmt.Errorf("cannot list the connections of %s: %w", addr, err)
		}
		for _, entry := range found {
			_, err := conn.Execute(ofConnections(nl.IPCTNL_MSG_CT_DELETE, netlink.Acknowledge, entry.Data[len(connectionsHeader):]))
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("cannot end a connection of %s: %w", addr, err)
			}
		}
	}
	return nil
}

// selection returns the attributes with which the kernel lists only the connections that
// have the address.
func (s side) selection(addr netip.Addr) ([]byte, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Nested(s.tuple, func(attrs *netlink.AttributeEncoder) error {
		attrs.Nested(nl.CTA_TUPLE_IP, func(attrs *netlink.AttributeEncoder) error {
			attrs.Bytes(s.address, addr.AsSlice())
			return nil
		})
		return nil
	})
	attrs.Nested(ctaFilter, func(attrs *netlink.AttributeEncoder) error {
		attrs.Bytes(s.flags, binary.NativeEndian.AppendUint32(nil, s.filter))
		return nil
	})
	return attrs.Encode()
}

// connections lists the entries that have the address.
func (s side) connections(conn *netlink.Conn, addr netip.Addr) ([]netlink.Message, error) {
	selected, err := s.selection(addr)
	if err != nil {
		return nil, err
	}
	const attempts = 10 // the table may change while the kernel sends it
	var found []netlink.Message
	for range attempts {
		if found, err = conn.Execute(ofConnections(nl.IPCTNL_MSG_CT_GET, netlink.Dump, selected)); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(found, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			return s.of(addr, found), nil
		}
	}
	return nil, errors.New("the table changed whenever it was read")
}

// of leaves the entries that have the address.
func (s side) of(addr netip.Addr, found []netlink.Message) []netlink.Message {
	// A kernel that does not know filters lists the connections of all.
	return slices.DeleteFunc(found, func(m netlink.Message) bool {
		return len(m.Data) < len(connectionsHeader) || !bytes.Equal(attribute(m.Data[len(connectionsHeader):], s.tuple, nl.CTA_TUPLE_IP, s.address), addr.AsSlice())
	})
}

// ofConnections returns a request about connections.
func ofConnections(kind int, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   slices.Concat(connectionsHeader, attrs),
	}
}

// attribute returns the value at a path of nested attributes, or nil.
func attribute(attrs []byte, path ...uint16) []byte {
	for _, want := range path {
		all, err := netlink.UnmarshalAttributes(attrs)
		if err != nil {
			return nil
		}
		at := slices.IndexFunc(all, func(a netlink.Attribute) bool { return a.Type&attributeType == want })
		if at < 0 {
			return nil
		}
		attrs = all[at].Data
	}
	return attrs
}
