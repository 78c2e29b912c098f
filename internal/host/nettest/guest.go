//go:build linux

package nettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vnetHeader is the size of the header before each frame of a TAP.
const vnetHeader = 10

// Guest is a namespace with one interface, eth0, behind a TAP of the host.
type Guest struct {
	*Namespace
	MAC net.HardwareAddr

	tap  *os.File // the host's TAP, which a VMM would have
	nic  *os.File // the TAP that is the guest's eth0
	pump sync.WaitGroup
	once sync.Once
}

// NewGuest plugs a guest with this MAC into tap, which it owns from now on, and
// unplugs it at the end of the test.
func NewGuest(t testing.TB, tap *os.File, mac net.HardwareAddr) *Guest {
	t.Helper()
	g := &Guest{Namespace: NewNamespace(t), MAC: mac, tap: tap}
	g.Do(t, func() error {
		var err error
		g.nic, err = newNIC("eth0", mac)
		return err
	})
	g.pump.Go(func() { _, _ = io.Copy(packets{g.nic}, packets{g.tap}) })
	g.pump.Go(func() { _, _ = io.Copy(packets{g.tap}, packets{g.nic}) })
	t.Cleanup(g.Unplug)
	return g
}

// Unplug disconnects the guest, as the end of its VMM does.
func (g *Guest) Unplug() {
	g.once.Do(func() {
		_ = g.tap.Close()
		_ = g.nic.Close()
		g.pump.Wait()
	})
}

// packets hides the methods by which io.Copy would skip its loop.
type packets struct{ f *os.File }

// Read reads one frame.
func (p packets) Read(b []byte) (int, error) { return p.f.Read(b) }

// Write writes one frame; one that the other side refuses is lost, as on a wire.
func (p packets) Write(b []byte) (int, error) {
	if _, err := p.f.Write(b); errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	return len(b), nil
}

// Configure sets eth0's address and the default route without DHCP.
func (g *Guest) Configure(t testing.TB, addr netip.Prefix, gateway netip.Addr) {
	t.Helper()
	g.Do(t, func() error {
		if err := address("eth0", addr.String()); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Gw: gateway.AsSlice()})
	})
}

// SetMAC changes the MAC of eth0.
func (g *Guest) SetMAC(t testing.TB, mac net.HardwareAddr) {
	t.Helper()
	g.Do(t, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, mac)
	})
}

// Dial connects from the guest.
func (g *Guest) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := g.Try(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Inject sends a frame past the guest's network stack.
func (g *Guest) Inject(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := g.tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		t.Fatalf("cannot send a frame: %v", err)
	}
}

// Sniff passes every frame that reaches the guest to see, until the test ends.
// It returns once it listens.
func (g *Guest) Sniff(t testing.TB, see func(frame []byte)) {
	t.Helper()
	Sniff(t, g.Namespace, "eth0", see)
}

// Sniff passes every frame that an interface of ns receives to see, until the
// test ends. A nil ns is the test's own. It returns once it listens.
func Sniff(t testing.TB, ns *Namespace, iface string, see func(frame []byte)) {
	t.Helper()
	var socket *os.File
	listen := func() (err error) {
		socket, err = packetSocket(iface)
		return err
	}
	if ns == nil {
		if err := listen(); err != nil {
			t.Fatal(err)
		}
	} else {
		ns.Do(t, listen)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := socket.Read(buf)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err == nil {
				see(append([]byte(nil), buf[:n]...))
			}
		}
	})
	t.Cleanup(func() {
		_ = socket.Close()
		reader.Wait()
	})
}

func packetSocket(iface string) (*os.File, error) {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a packet socket: %w", err)
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("cannot listen on %s: %w", iface, err)
	}
	// Only frames that reached the interface, not those that it sends.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet:"+iface), nil
}

// newNIC makes a TAP in the role of a guest's network card and sets it up.
func newNIC(name string, mac net.HardwareAddr) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("cannot make a guest's interface: %w", err)
	}
	f := os.NewFile(uintptr(fd), "nic:"+name)
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetHardwareAddr(link, mac)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
