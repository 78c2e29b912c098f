//go:build system

package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/nettest"
	"github.com/hatchvm/hatch/internal/network"
)

const (
	soon  = 5 * time.Second        // for what must happen
	never = 300 * time.Millisecond // for what must not
)

func testNetwork(t testing.TB) network.Network {
	t.Helper()
	n, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// setUp sets up a network in the test's namespace, and tears it down.
func setUp(t testing.TB, cfg Config) *Links {
	t.Helper()
	cfg.Network, cfg.Log = testNetwork(t), slog.New(slog.NewTextHandler(t.Output(), nil))
	l := New(cfg)
	if err := l.Setup(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Teardown(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// stopWatching lets a test break what the network would repair.
func stopWatching(l *Links) {
	l.mu.Lock()
	stop := l.stop
	l.mu.Unlock()
	stop()
	l.watch.Wait()
}

func testLink(n network.Network, host uint32) network.Link {
	addr := n.At(host)
	return network.Link{
		VMID: fmt.Sprintf("vm_%d", host), Hostname: fmt.Sprintf("guest-%d", host),
		Tap: fmt.Sprintf("htap%d", host), MAC: n.MAC(addr), Address: addr,
	}
}

// plug attaches a guest; its stack has no address yet.
func plug(t testing.TB, l *Links, host uint32) (*nettest.Guest, network.Link) {
	t.Helper()
	v := testLink(l.cfg.Network, host)
	return plugAs(t, l, v), v
}

func plugAs(t testing.TB, l *Links, v network.Link) *nettest.Guest {
	t.Helper()
	tap, err := l.Attach(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	g := nettest.NewGuest(t, tap, v.MAC)
	awaitNil(t, func() error { return isUp(l.cfg.Network.Bridge) })
	return g
}

// isUp checks that an interface passes packets; a bridge does so shortly after it
// gets its first port.
func isUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if state := link.Attrs().OperState; state != netlink.OperUp {
		return fmt.Errorf("%s is %s", name, state)
	}
	return nil
}

// plugAndConfigure attaches a guest that has its address.
func plugAndConfigure(t testing.TB, l *Links, host uint32) (*nettest.Guest, network.Link) {
	t.Helper()
	g, v := plug(t, l, host)
	g.Configure(t, netip.PrefixFrom(v.Address, 24), l.cfg.Network.Gateway)
	return g, v
}

// listen opens a TCP port, in ns or here, that answers with the client's address.
func listen(t testing.TB, ns *nettest.Namespace, address string) {
	t.Helper()
	var ln net.Listener
	open := func() (err error) {
		ln, err = net.Listen("tcp", address)
		return err
	}
	if ns == nil {
		if err := open(); err != nil {
			t.Fatal(err)
		}
	} else {
		ns.Do(t, open)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); served.Wait() })
}

// whoAmI returns the answer of a port that listen opened.
func whoAmI(g *nettest.Guest, address string, timeout time.Duration) (string, error) {
	conn, err := g.Dial("tcp", address, timeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// internet makes a namespace one hop away with the address 198.51.100.1.
func internet(t testing.TB) *nettest.Namespace {
	t.Helper()
	ns := nettest.NewNamespace(t)
	nettest.Wire(t, ns, "up0", "192.0.2.1/30", "eth0", "192.0.2.2/30")
	ns.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("198.51.100.1/32")
		return netlink.AddrAdd(lo, addr)
	})
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.IPv4(192, 0, 2, 2)}); err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestGuestGetsItsAddressByDHCP(t *testing.T) {
	l := setUp(t, Config{MTU: 1400})
	other, _ := plug(t, l, 11)
	var overheard sync.Map
	other.Sniff(t, func(frame []byte) {
		if strings.Contains(string(frame), "guest-10") {
			overheard.Store("reply", frame)
		}
	})
	g, v := plug(t, l, 10)
	for _, broadcast := range []bool{false, true} {
		t.Run(fmt.Sprintf("broadcast=%v", broadcast), func(t *testing.T) {
			lease := requestLease(t, g, dhcpv4.WithBroadcast(broadcast))
			ack := lease.ACK
			if got := ack.YourIPAddr.String(); got != v.Address.String() {
				t.Errorf("address %s, want %s", got, v.Address)
			}
			gw := l.cfg.Network.Gateway.String()
			if r := ack.Router(); len(r) != 1 || r[0].String() != gw {
				t.Errorf("router %v, want %s", r, gw)
			}
			if d := ack.DNS(); len(d) != 1 || d[0].String() != gw {
				t.Errorf("DNS %v, want %s", d, gw)
			}
			if ack.HostName() != v.Hostname {
				t.Errorf("hostname %q, want %q", ack.HostName(), v.Hostname)
			}
			if mtu := ack.Options.Get(dhcpv4.OptionInterfaceMTU); string(mtu) != "\x05\x78" {
				t.Errorf("MTU %x, want 1400", mtu)
			}
		})
	}
	if _, heard := overheard.Load("reply"); heard {
		t.Error("another guest got the reply")
	}
}

func requestLease(t testing.TB, g *nettest.Guest, mods ...dhcpv4.Modifier) *nclient4.Lease {
	t.Helper()
	var lease *nclient4.Lease
	g.Do(t, func() error {
		client, err := nclient4.New("eth0", nclient4.WithTimeout(soon), nclient4.WithRetry(1))
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		lease, err = client.Request(ctx, mods...)
		return err
	})
	return lease
}

func TestGuestReachesTheInternetAndNothingElse(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{})
	g, v := plugAndConfigure(t, l, 10)
	listen(t, world, "198.51.100.1:80")

	t.Run("the internet, under the host's address", func(t *testing.T) {
		got, err := whoAmI(g, "198.51.100.1:80", soon)
		if err != nil || got != "192.0.2.1" {
			t.Errorf("the internet saw %q (%v), want 192.0.2.1", got, err)
		}
	})

	listen(t, nil, "0.0.0.0:8080")
	for _, closed := range []string{"172.16.0.1:8080", "192.0.2.1:8080", "127.0.0.1:8080"} {
		t.Run("not the host's "+closed, func(t *testing.T) {
			if closed == "127.0.0.1:8080" {
				g.Do(t, routeLoopbackOut)
			}
			refuses(t, g, closed)
		})
	}
	for _, addr := range []string{"169.254.169.254", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1"} {
		t.Run("not "+addr, func(t *testing.T) {
			world.Do(t, func() error { return addLoopbackAddress(addr) })
			listen(t, world, addr+":80")
			// The host can reach it: only the rules stop the guest.
			conn, err := net.DialTimeout("tcp", addr+":80", soon)
			if err != nil {
				t.Fatalf("the test is broken: the host cannot reach %s: %v", addr, err)
			}
			_ = conn.Close()
			refuses(t, g, addr+":80")
		})
	}
	t.Run("not the host's own network", func(t *testing.T) {
		listen(t, world, "192.0.2.2:80")
		refuses(t, g, "192.0.2.2:80")
	})
	t.Run("no connection from outside to a guest", func(t *testing.T) {
		listen(t, g.Namespace, v.Address.String()+":22")
		world.Do(t, func() error {
			return netlink.RouteReplace(&netlink.Route{
				Dst: &net.IPNet{IP: net.IPv4(172, 16, 0, 0), Mask: net.CIDRMask(24, 32)}, Gw: net.IPv4(192, 0, 2, 1),
			})
		})
		err := world.Try(func() error {
			// From an address that the guest may answer.
			d := net.Dialer{Timeout: never, LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1)}}
			conn, err := d.Dial("tcp", v.Address.String()+":22")
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if err == nil {
			t.Error("a connection from outside reached a guest")
		}
		conn, err := net.DialTimeout("tcp", v.Address.String()+":22", soon)
		if err != nil {
			t.Fatalf("the host cannot reach the guest: %v", err)
		}
		_ = conn.Close()
	})
}

func TestAllowedPrivateRangeIsReached(t *testing.T) {
	world := internet(t)
	l := setUp(t, Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.0/24")}})
	g, _ := plugAndConfigure(t, l, 10)
	world.Do(t, func() error { return errors.Join(addLoopbackAddress("10.1.2.3"), addLoopbackAddress("10.2.2.3")) })
	listen(t, world, "0.0.0.0:80")
	for _, open := range []string{"10.1.2.3:80", "192.0.2.2:80"} {
		if _, err := whoAmI(g, open, soon); err != nil {
			t.Errorf("%s is allowed and cannot be reached: %v", open, err)
		}
	}
	refuses(t, g, "10.2.2.3:80")
	listen(t, nil, "192.0.2.1:8080")
	refuses(t, g, "192.0.2.1:8080") // the host's own address stays closed
}

func refuses(t testing.TB, g *nettest.Guest, address string) {
	t.Helper()
	conn, err := g.Dial("tcp", address, never)
	if err == nil {
		_ = conn.Close()
		t.Errorf("a guest reached %s", address)
	}
}

func addLoopbackAddress(addr string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr + "/32")
	if err != nil {
		return err
	}
	return netlink.AddrReplace(lo, a)
}

// routeLoopbackOut makes a guest send packets for 127.0.0.1 to its gateway.
func routeLoopbackOut() error {
	for _, name := range []string{"all", "eth0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetDown(lo); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(32, 32)}, Gw: net.IPv4(172, 16, 0, 1),
	})
}

func TestGuestAsksDNS(t *testing.T) {
	upstream := startResolver(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// The upstream listens on the host's loopback, as a stub resolver does.
	if err := os.WriteFile(conf, []byte("nameserver "+upstream+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := setUp(t, Config{ResolvConf: conf})
	g, _ := plugAndConfigure(t, l, 10)
	for _, transport := range []string{"udp", "tcp"} {
		conn, err := g.Dial(transport, "172.16.0.1:53", soon)
		if err != nil {
			t.Fatalf("%s: %v", transport, err)
		}
		client := &mdns.Client{Net: transport, Timeout: soon}
		q := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeA)
		answer, _, err := client.ExchangeWithConn(q, &mdns.Conn{Conn: conn})
		_ = conn.Close()
		if err != nil || len(answer.Answer) != 1 || !strings.Contains(answer.Answer[0].String(), "203.0.113.7") {
			t.Errorf("%s: got %v, %v", transport, answer, err)
		}
	}
}

// startResolver answers every question with 203.0.113.7 on loopback, port 53.
func startResolver(t testing.TB) string {
	t.Helper()
	const host = "127.0.0.53"
	packets, err := net.ListenPacket("udp", host+":53")
	if err != nil {
		t.Fatal(err)
	}
	srv := &mdns.Server{PacketConn: packets, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		rr, _ := mdns.NewRR(q.Question[0].Name + " 60 IN A 203.0.113.7")
		m.Answer = append(m.Answer, rr)
		_ = w.WriteMsg(m)
	})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	var served sync.WaitGroup
	served.Go(func() { _ = srv.ActivateAndServe() })
	<-started
	t.Cleanup(func() { _ = srv.Shutdown(); served.Wait() })
	return host
}
