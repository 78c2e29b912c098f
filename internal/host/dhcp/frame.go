package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ipHeader  = 20
	udpHeader = 8
	ttl       = 64
)

// frameSender sends IP packets from an interface straight to a MAC, which an
// ordinary socket cannot do for a guest that has no address yet.
type frameSender struct {
	file  *os.File
	index int
}

func newFrameSender(iface string) (*frameSender, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("cannot look up %s: %w", iface, err)
	}
	// Protocol 0: the socket sends and receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a packet socket on %s: %w", iface, err)
	}
	return &frameSender{file: os.NewFile(uintptr(fd), "packet:"+iface), index: ifi.Index}, nil
}

func (f *frameSender) send(r *reply) error {
	packet, err := r.packet()
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: f.index, Halen: 6}
	copy(to.Addr[:], r.to)
	raw, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), packet, 0, to)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err != nil {
		return err
	}
	return failed
}

// Close closes the socket.
func (f *frameSender) Close() error { return f.file.Close() }

// packet wraps the message in IPv4 and UDP, from port 67 to port 68.
func (r *reply) packet() ([]byte, error) {
	size := ipHeader + udpHeader + len(r.message)
	if size > 0xffff {
		return nil, fmt.Errorf("a DHCP reply of %d bytes is too long", len(r.message))
	}
	p := make([]byte, size)
	ip, udp := p[:ipHeader], p[ipHeader:]
	ip[0], ip[8], ip[9] = 0x45, ttl, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(size))
	copy(ip[12:], r.from.AsSlice())
	copy(ip[16:], r.address.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))

	binary.BigEndian.PutUint16(udp, 67)
	binary.BigEndian.PutUint16(udp[2:], 68)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpHeader:], r.message)
	binary.BigEndian.PutUint16(udp[6:], udpChecksum(r.from, r.address, udp))
	return p, nil
}

// udpChecksum is the checksum over the pseudo header and the datagram; 0 would
// mean none, and is written as its other form.
func udpChecksum(from, to netip.Addr, udp []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	if sum := checksum(sum(0, pseudo), udp); sum != 0 {
		return sum
	}
	return 0xffff
}

func checksum(start uint32, data []byte) uint16 {
	total := sum(start, data)
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// sum adds up data in 16-bit words, an odd last byte filled up with zero.
func sum(total uint32, data []byte) uint32 {
	for ; len(data) >= 2; data = data[2:] {
		total += uint32(data[0])<<8 | uint32(data[1])
	}
	if len(data) == 1 {
		total += uint32(data[0]) << 8
	}
	return total
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
