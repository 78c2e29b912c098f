//go:build system

package link

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/nettest"
	"github.com/hatchvm/hatch/internal/network"
)

// flows lists the host's connections that match.
func flows(t testing.TB, match func(*netlink.ConntrackFlow) bool) []*netlink.ConntrackFlow {
	t.Helper()
	for {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(all, func(f *netlink.ConntrackFlow) bool { return !match(f) })
	}
}

func flowsOf(t testing.TB, addr netip.Addr) []*netlink.ConntrackFlow {
	t.Helper()
	is := net.IP(addr.AsSlice()).Equal
	return flows(t, func(f *netlink.ConntrackFlow) bool {
		return is(f.Forward.SrcIP) || is(f.Forward.DstIP) || is(f.Reverse.SrcIP) || is(f.Reverse.DstIP)
	})
}

// floodFrom sends datagrams from many ports of a guest, each of which begins a
// connection.
func floodFrom(t testing.TB, g *nettest.Guest, v network.Link, to netip.AddrPort, count uint16) {
	t.Helper()
	gateway := testNetwork(t).MAC(testNetwork(t).Gateway)
	for port := range count {
		g.Inject(t, ethernet(gateway, v.MAC, etherIPv4, udp(netip.AddrPortFrom(v.Address, 10000+port), to, "x")))
	}
}

func TestAGuestsConnectionsAreBounded(t *testing.T) {
	world := internet(t)
	const share, flood = 50, 2000
	l := setUp(t, Config{Flows: share})
	g, v := plugAndConfigure(t, l, 10)
	neighbour, _ := plugAndConfigure(t, l, 11)
	listen(t, world, "198.51.100.1:80")

	floodFrom(t, g, v, netip.MustParseAddrPort("198.51.100.1:9"), flood)
	if got := len(flowsOf(t, v.Address)); got < share || got > share+5 {
		t.Errorf("a flood to the internet made %d connections, want %d", got, share)
	}
	if _, err := whoAmI(neighbour, "198.51.100.1:80", soon); err != nil {
		t.Errorf("another guest cannot connect: %v", err)
	}
	if err := endConnections(v.Address); err != nil {
		t.Fatal(err)
	}
	floodFrom(t, g, v, netip.AddrPortFrom(l.cfg.Network.Gateway, 53), flood)
	if got := len(flowsOf(t, v.Address)); got < share || got > share+5 {
		t.Errorf("a flood to the gateway made %d connections, want %d", got, share)
	}

	// Control: without the rule, each datagram makes one.
	stopWatching(l)
	runNFT(t, "flush chain inet hatch flows")
	floodFrom(t, g, v, netip.MustParseAddrPort("198.51.100.1:9"), flood)
	if got := len(flowsOf(t, v.Address)); got < flood {
		t.Fatalf("the test is broken: without the rule, %d datagrams made %d connections", flood, got)
	}
}

func TestGuestsConnectionsAreForgottenEarly(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{})
	if !l.rules.ForgetsEarly() {
		t.Fatal("this kernel has no timeouts for some connections only: use one with CONFIG_NF_CONNTRACK_TIMEOUT")
	}
	g, v := plugAndConfigure(t, l, 10)
	var server net.Listener // the kernel accepts, so that the connection stays open
	world.Do(t, func() (err error) {
		server, err = net.Listen("tcp", "198.51.100.1:80")
		return err
	})
	defer server.Close()
	conn, err := g.Dial("tcp", "198.51.100.1:80", soon)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	floodFrom(t, g, v, netip.MustParseAddrPort("198.51.100.1:9"), 1)
	longest := map[uint8]uint32{unix.IPPROTO_TCP: 2*3600 + 240, unix.IPPROTO_UDP: 10} // seconds
	found := flowsOf(t, v.Address)
	for _, f := range found {
		if most, ok := longest[f.Forward.Protocol]; ok && f.TimeOut > most {
			t.Errorf("%s is forgotten after %d s, want at most %d s", f, f.TimeOut, most)
		}
	}
	if len(found) < 2 {
		t.Errorf("the test is broken: there are only the connections %v", found)
	}
}

func TestTheAPIOnLoopbackIsNotTracked(t *testing.T) {
	api, other := echo(t, "127.0.0.1:0"), echo(t, "127.0.0.1:0")
	l := setUp(t, Config{APIPort: api.Port()})
	plug(t, l, 10)
	tracked := func(port uint16) bool {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String(), soon)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintln(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(soon))
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		return len(flows(t, func(f *netlink.ConntrackFlow) bool { return f.Forward.DstPort == port || f.Forward.SrcPort == port })) > 0
	}
	if tracked(api.Port()) {
		t.Error("a connection to the API is in the table that guests fill")
	}
	if !tracked(other.Port()) {
		t.Error("the test is broken: no connection on loopback is tracked")
	}
}

// echo opens a TCP port that sends back what it receives.
func echo(t testing.TB, address string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			_, _ = conn.Write([]byte(line))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// A server outside goes on to send to a VM that is gone; the next VM with the address
// must not receive it.
func TestConnectionsEndWithTheirVM(t *testing.T) {
	cases := map[string]struct {
		asleep bool // the VM, and so the next attachment is its wake
		passes bool
	}{
		"a VM that ends":   {false, false},
		"a VM that sleeps": {true, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			world := internet(t)
			l := setUp(t, Config{})
			g, v := plugAndConfigure(t, l, 10)
			server, client := datagramFrom(t, world, g)
			v.Asleep = c.asleep
			g.Unplug()
			if err := l.Detach(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			if got := len(flowsOf(t, v.Address)) > 0; got != c.asleep {
				t.Errorf("connections are left: %v, want %v", got, c.asleep)
			}
			next := plugAs(t, l, v)
			next.Configure(t, netip.PrefixFrom(v.Address, 24), l.cfg.Network.Gateway)
			heard := newMarks()
			next.Sniff(t, heard.look)
			if _, err := server.WriteTo([]byte(mark("late")), client); err != nil {
				t.Fatal(err)
			}
			// The host's own packet takes the same way after it.
			hostCalls(t, netip.AddrPortFrom(v.Address, 7), "after")
			heard.await(t, "after")
			if !c.passes && heard.has("late") {
				t.Error("a packet for the former VM reached the next one")
			}
			if c.passes {
				heard.await(t, "late")
			}
		})
	}
}

// What hatchd did not see end is ended before the next VM is attached.
func TestConnectionsOfAnUnseenVMEnd(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	datagramFrom(t, world, g)
	g.Unplug()
	if len(flowsOf(t, v.Address)) == 0 {
		t.Fatal("the test is broken: there is no connection")
	}
	if err := l.disconnect(v); err != nil {
		t.Fatal(err)
	}
	plug(t, l, 10)
	udpLeft := slices.DeleteFunc(flowsOf(t, v.Address), func(f *netlink.ConntrackFlow) bool { return f.Forward.DstPort != worldPort })
	if len(udpLeft) > 0 {
		t.Errorf("connections are left: %v", udpLeft)
	}
}

// A host may have hundreds of thousands of connections: the kernel sends those of one
// address only, and only if it may have any.
func TestTheKernelSelectsConnections(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	other, o := plugAndConfigure(t, l, 11)
	datagramFrom(t, world, g)
	floodFrom(t, other, o, netip.MustParseAddrPort("198.51.100.1:9"), 50)
	conn, err := mdlayher.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := []mdlayher.Message{}
	for _, s := range sides {
		selected, err := s.selection(v.Address)
		if err != nil {
			t.Fatal(err)
		}
		found, err := conn.Execute(ofConnections(nl.IPCTNL_MSG_CT_GET, mdlayher.Dump, selected))
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, found...)
	}
	if own := len(flowsOf(t, v.Address)); own == 0 || len(sent) < own || len(sent) > 2*own {
		t.Errorf("the kernel sent %d entries for the %d of the guest", len(sent), own)
	}
}

const worldPort = 7777

// datagramFrom sends a datagram from the guest to a server outside, and returns the
// server's socket and the address to which it would reply.
func datagramFrom(t testing.TB, world *nettest.Namespace, g *nettest.Guest) (net.PacketConn, net.Addr) {
	t.Helper()
	var server net.PacketConn
	world.Do(t, func() (err error) {
		server, err = net.ListenPacket("udp4", fmt.Sprintf("198.51.100.1:%d", worldPort))
		return err
	})
	t.Cleanup(func() { _ = server.Close() })
	conn, err := g.Dial("udp", server.LocalAddr().String(), soon)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(soon))
	buf := make([]byte, 64)
	n, client, err := server.ReadFrom(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "hello") {
		t.Fatalf("the server got %q, %v", buf[:n], err)
	}
	return server, client
}
