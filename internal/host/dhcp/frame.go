package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ipHeader  = 20
	udpHeader = 8
	ttl       = 64
)

// frameSender sends IP packets from an interface to a MAC; an ordinary socket
// cannot reach a guest that has no address yet.
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
	var protocol [2]byte // in network order
	binary.BigEndian.PutUint16(protocol[:], unix.ETH_P_IP)
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(protocol[:]), Ifindex: f.index, Halen: 6}
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

	pseudo := append(r.from.AsSlice(), r.address.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	total := checksum(sum(0, pseudo), udp)
	if total == 0 { // which would mean: no checksum
		total = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], total)
	return p, nil
}

func checksum(start uint32, data []byte) uint16 {
	total := sum(start, data)
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// sum adds data to total in 16-bit words; an odd last byte is padded with zero.
func sum(total uint32, data []byte) uint32 {
	for ; len(data) >= 2; data = data[2:] {
		total += uint32(data[0])<<8 | uint32(data[1])
	}
	if len(data) == 1 {
		total += uint32(data[0]) << 8
	}
	return total
}
