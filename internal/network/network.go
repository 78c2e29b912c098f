// Package network says what a VM has of the network: the addresses of a
// [Network], the [Lease] that reserves some of them, the [Link] by which the VM
// is connected, and the forwards that lead to it.
//
// It computes and never touches the host: internal/host/link makes bridges,
// TAPs and rules, internal/store reserves leases. Start at [Network].
package network

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
)

// Network is one IPv4 bridge network. Gateway is the host's address in Prefix;
// guests get the others, except the network's and the broadcast address.
type Network struct {
	Bridge  string       // interface name, ≤ 15 bytes
	Gateway netip.Addr   // the host's address
	Prefix  netip.Prefix // masked; /8 to /30
}

// New makes a network from a bridge name and the host's address in CIDR form,
// such as 172.16.0.1/24.
func New(bridge, cidr string) (Network, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.Addr().Is4() {
		return Network{}, fmt.Errorf("%q is not an IPv4 address with a prefix length, such as 172.16.0.1/24", cidr)
	}
	if p.Bits() < 8 || p.Bits() > 30 {
		return Network{}, fmt.Errorf("%q has a prefix length of %d: want /8 to /30", cidr, p.Bits())
	}
	n := Network{Bridge: bridge, Gateway: p.Addr(), Prefix: p.Masked()}
	if n.Gateway == n.Prefix.Addr() || n.Gateway == n.Broadcast() {
		return Network{}, fmt.Errorf("%q is the address of the network itself; give the host's address in it, such as %s", cidr, n.Prefix.Addr().Next())
	}
	return n, nil
}

// Broadcast returns the network's broadcast address.
func (n Network) Broadcast() netip.Addr {
	return n.At(n.size() - 1)
}

// At returns the address with this host number; 0 is the network's own.
func (n Network) At(host uint32) netip.Addr {
	base := n.Prefix.Addr().As4()
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+host)
	return netip.AddrFrom4(a)
}

// HostNumber returns the position of addr within the network.
// Precondition: the network contains addr.
func (n Network) HostNumber(addr netip.Addr) uint32 {
	base, a := n.Prefix.Addr().As4(), addr.As4()
	return binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:])
}

// Hosts returns the range of host numbers that guests may have, both ends included.
// The gateway may be in it; see [Network.Usable].
func (n Network) Hosts() (first, last uint32) { return 1, n.size() - 2 }

// Usable reports whether a guest may have addr; if not, why is the reason for a
// user.
func (n Network) Usable(addr netip.Addr) (why string, ok bool) {
	switch {
	case !addr.Is4() || !n.Prefix.Contains(addr):
		return fmt.Sprintf("%s is not in the network %s", addr, n.Prefix), false
	case addr == n.Gateway:
		return fmt.Sprintf("%s is the host's address", addr), false
	case addr == n.Prefix.Addr() || addr == n.Broadcast():
		return fmt.Sprintf("%s is the network's or its broadcast address", addr), false
	}
	return "", true
}

// MAC returns the MAC of the guest with this address: 02:FC and the host number in
// four bytes.
func (n Network) MAC(addr netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0xFC, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(mac[2:], n.HostNumber(addr))
	return mac
}

// FormatMAC writes a MAC as the API shows it, in upper case.
func FormatMAC(mac net.HardwareAddr) string { return strings.ToUpper(mac.String()) }

func (n Network) size() uint32 { return 1 << (32 - n.Prefix.Bits()) }

// PortGroup returns the number of the interface group of all TAPs of this network,
// by which rules match them. It is a hash of the bridge's name, far above the
// numbers that operators choose.
func (n Network) PortGroup() uint32 {
	const high = 1 << 30
	return crc32.ChecksumIEEE([]byte(n.Bridge))&(high-1) | high
}
