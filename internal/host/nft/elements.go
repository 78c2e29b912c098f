package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

const ifnameBytes = 16

// ifname is the name of an interface in the kernel's form.
func ifname(name string) []byte {
	b := make([]byte, ifnameBytes)
	copy(b[:ifnameBytes-1], name)
	return b
}

// senderKey is g's key in the set of senders: TAP, MAC, address.
func senderKey(g Guest) []byte { return append(stationKey(g), g.Address.AsSlice()...) }

// stationKey is g's key in the set of stations: TAP, MAC. Each part is padded
// to 4 bytes.
func stationKey(g Guest) []byte {
	key := append(ifname(g.TAP), g.MAC...)
	return append(key, 0, 0)
}

// keys makes the elements of guests in a set.
func keys(guests []Guest, key func(Guest) []byte) []nftables.SetElement {
	es := make([]nftables.SetElement, 0, len(guests))
	for _, g := range guests {
		es = append(es, nftables.SetElement{Key: key(g)})
	}
	return es
}

// intervals makes the elements of an interval set: for each range of addresses
// the first one, and the first one after it, if there is one.
func intervals(ps []netip.Prefix) []nftables.SetElement {
	es := []nftables.SetElement{} // not nil: set.check shall find it empty
	for _, s := range spans(ps) {
		es = append(es, nftables.SetElement{Key: big32(s.first)})
		if s.last != ^uint32(0) {
			es = append(es, nftables.SetElement{Key: big32(s.last + 1), IntervalEnd: true})
		}
	}
	return es
}

// span is a range of addresses, both ends included.
type span struct{ first, last uint32 }

// spans sorts IPv4 prefixes and merges those that overlap or touch. It skips IPv6:
// guests have none.
func spans(ps []netip.Prefix) []span {
	var all []span
	for _, p := range ps {
		if !p.IsValid() || !p.Addr().Is4() {
			continue
		}
		a := p.Masked().Addr().As4()
		first := binary.BigEndian.Uint32(a[:])
		all = append(all, span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var merged []span
	for _, s := range all {
		if n := len(merged); n > 0 && uint64(s.first) <= uint64(merged[n-1].last)+1 {
			merged[n-1].last = max(merged[n-1].last, s.last)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

func big32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// addElements splits the elements over several messages: a list has at most 64 KiB.
func addElements(conn *nftables.Conn, s *nftables.Set, es []nftables.SetElement) error {
	const perMessage = 500
	for chunk := range slices.Chunk(es, perMessage) {
		if err := conn.SetAddElements(s, chunk); err != nil {
			return fmt.Errorf("cannot fill set %s: %w", s.Name, err)
		}
	}
	return nil
}
