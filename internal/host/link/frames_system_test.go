//go:build system

package link

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The frames here are what a hostile guest may send; its own stack would not.

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
)

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(to, from net.HardwareAddr, etherType uint16, payload []byte) []byte {
	f := append(append([]byte(nil), to...), from...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	return append(f, payload...)
}

// udp is an IPv4 packet with a UDP datagram without checksum.
func udp(from, to netip.AddrPort, payload string) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

// bootp is what a DHCP message begins with: zeros, and the client's MAC.
func bootp(chaddr net.HardwareAddr, rest string) string {
	fixed := make([]byte, 236)
	copy(fixed[28:], chaddr)
	return string(fixed) + rest
}

// arp is an ARP request (1) or reply (2). mark identifies it.
func arp(op uint16, senderMAC net.HardwareAddr, senderIP, targetIP netip.Addr, mark string) []byte {
	p := []byte{0, 1, 8, 0, 6, 4}
	p = binary.BigEndian.AppendUint16(p, op)
	p = append(append(p, senderMAC...), senderIP.AsSlice()...)
	p = append(append(p, make([]byte, 6)...), targetIP.AsSlice()...)
	return append(p, mark...)
}

// tagged puts a VLAN tag before a frame's EtherType.
func tagged(frame []byte, vlan uint16) []byte {
	f := append([]byte(nil), frame[:12]...)
	f = binary.BigEndian.AppendUint16(f, etherVLAN)
	f = binary.BigEndian.AppendUint16(f, vlan)
	return append(f, frame[12:]...)
}
