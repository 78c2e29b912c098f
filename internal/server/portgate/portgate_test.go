package portgate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

const soon = 5 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

var loopback = prefixes("127.0.0.0/8")

// sshTo is a forward of a guest's SSH port.
func sshTo(port int, target netip.AddrPort) network.Forward {
	return network.Forward{Kind: network.ForwardSSH, Host: port, Guest: int(target.Port()), Address: target.Addr()}
}

// dialTCP connects to what a forward leads to.
func dialTCP(ctx context.Context, a Arrival) (vm.PortConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(a.Address, uint16(a.Guest)).String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// open opens a gate to a guest on a free port, and returns both.
func open(t *testing.T, cfg Config, target netip.AddrPort) (*Gate, int) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	g := New(cfg)
	return g, openPort(t, g, target)
}

// openPort opens a free port of a gate, which is shut down at the end of the test.
func openPort(t *testing.T, g *Gate, target netip.AddrPort) int {
	t.Helper()
	t.Cleanup(g.Shutdown)
	for range 20 {
		port := freePort(t)
		err := g.Forward("vm_a", []network.Forward{sshTo(port, target)})
		if err == nil {
			return port
		}
		if errs.KindOf(err) != errs.Conflict {
			t.Fatal(err)
		}
	}
	t.Fatal("no free port")
	return 0
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// echo is a guest that greets, reads to the end, and then answers.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	return serve(t, func(c *net.TCPConn) {
		fmt.Fprintln(c, "hello")
		all, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %d bytes", len(all))
	})
}

func serve(t *testing.T, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func call(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(soon))
	return c.(*net.TCPConn)
}

// isClosed waits for the other side to close, without a byte sent.
func isClosed(c net.Conn) bool {
	n, err := c.Read(make([]byte, 1))
	return n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestCopiesBothWaysWithHalfClose(t *testing.T) {
	_, port := open(t, Config{SSH: Kind{Allowed: loopback}}, echo(t))
	c := call(t, port)
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := io.Copy(c, strings.NewReader(strings.Repeat("x", 1<<20))); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "got 1048576 bytes" {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestAStrangerIsClosedWithoutADial(t *testing.T) {
	var dialled atomic.Int32
	count := func(context.Context, Arrival) (vm.PortConn, error) {
		dialled.Add(1)
		return nil, errors.New("dialled")
	}
	for name, allowed := range map[string][]netip.Prefix{
		"another network": prefixes("198.51.100.0/24"),
		"IPv6 only":       prefixes("2001:db8::/32"),
		"another host":    prefixes("127.0.0.2/32"),
		"no client":       nil,
	} {
		t.Run(name, func(t *testing.T) {
			_, port := open(t, Config{SSH: Kind{Allowed: allowed}, Dial: count}, netip.MustParseAddrPort("127.0.0.1:1"))
			if !isClosed(call(t, port)) {
				t.Error("not closed")
			}
		})
	}
	if n := dialled.Load(); n != 0 {
		t.Errorf("dialled %d times", n)
	}
}

func TestWhereItListens(t *testing.T) {
	cases := []struct {
		allowed []netip.Prefix
		want    string
	}{
		{loopback, "127.0.0.1"},
		{nil, "127.0.0.1"},
		{prefixes("127.0.0.1/32", "::1/128"), "127.0.0.1 ::1"},
		{prefixes("::1/128"), "::1"},
		{prefixes("::ffff:127.0.0.0/104"), "127.0.0.1"},
		{prefixes("127.0.0.0/8", "192.0.2.0/24"), ""},
		{prefixes("0.0.0.0/0"), ""},
		{prefixes("126.0.0.0/7"), ""},
		{prefixes("::/0"), ""},
		{prefixes("::1/127"), ""},
	}
	for _, c := range cases {
		if got := strings.Join(hosts(c.allowed), " "); got != c.want {
			t.Errorf("%v: listens on %q, want %q", c.allowed, got, c.want)
		}
	}
}

func TestAllowed(t *testing.T) {
	ps := prefixes("192.0.2.0/24", "2001:db8::/32", "::ffff:203.0.113.0/120")
	for addr, want := range map[string]bool{
		"192.0.2.7": true, "192.0.3.7": false, "2001:db8::7": true, "2001:db9::7": false,
		"203.0.113.9": true, "203.0.114.9": false, "2001:db8::7%eth0": true,
	} {
		if got := allowed(ps, netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestABootingGuestIsTriedAgain(t *testing.T) {
	target, tries := echo(t), atomic.Int32{}
	booting := func(ctx context.Context, a Arrival) (vm.PortConn, error) {
		if tries.Add(1) < 3 {
			return nil, syscall.ECONNREFUSED
		}
		return dialTCP(ctx, a)
	}
	_, port := open(t, Config{SSH: Kind{Allowed: loopback}, Dial: booting}, target)
	if line, err := bufio.NewReader(call(t, port)).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestADeadGuestIsGivenUp(t *testing.T) {
	refused := func(context.Context, Arrival) (vm.PortConn, error) { return nil, syscall.ECONNREFUSED }
	_, port := open(t, Config{SSH: Kind{Allowed: loopback}, Dial: refused, Timeout: 50 * time.Millisecond}, netip.MustParseAddrPort("127.0.0.1:1"))
	if !isClosed(call(t, port)) {
		t.Error("not closed")
	}
}

func TestTooManyConnectionsAreClosed(t *testing.T) {
	_, port := open(t, Config{SSH: Kind{Allowed: loopback, MaxConns: 1}}, echo(t))
	first := call(t, port)
	if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if !isClosed(call(t, port)) {
		t.Error("the second connection is not closed")
	}
	_ = first.Close()
	// The place is free once the first has ended.
	deadline := time.Now().Add(soon)
	for {
		if _, err := bufio.NewReader(call(t, port)).ReadString('\n'); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is not given back")
		}
	}
}

func TestCloseEndsConnections(t *testing.T) {
	g, port := open(t, Config{SSH: Kind{Allowed: loopback}}, echo(t))
	c := call(t, port)
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	mustForward(t, g, "vm_a")
	mustForward(t, g, "vm_a")
	if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection lives on: %v", err)
	}
	if _, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), soon); err == nil {
		t.Error("the port is still open")
	}
}

func TestCloseEndsADial(t *testing.T) {
	dialling := make(chan struct{})
	hang := func(ctx context.Context, _ Arrival) (vm.PortConn, error) {
		close(dialling)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g, port := open(t, Config{SSH: Kind{Allowed: loopback}, Dial: hang, Timeout: time.Hour}, netip.MustParseAddrPort("127.0.0.1:1"))
	c := call(t, port)
	<-dialling
	mustForward(t, g, "vm_a")
	if !isClosed(c) {
		t.Error("not closed")
	}
}

// mustForward makes these the forwards of a VM.
func mustForward(t *testing.T, g *Gate, vmID string, all ...network.Forward) {
	t.Helper()
	if err := g.Forward(vmID, all); err != nil {
		t.Fatal(err)
	}
}

// greets reports whether the guest behind a port answers.
func greets(t *testing.T, port int) bool {
	t.Helper()
	line, err := bufio.NewReader(call(t, port)).ReadString('\n')
	return err == nil && line == "hello\n"
}

func TestForwardAgainKeepsConnections(t *testing.T) {
	target := echo(t)
	g, port := open(t, Config{SSH: Kind{Allowed: loopback}}, target)
	c := call(t, port)
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	other := sshTo(freePort(t), target)
	mustForward(t, g, "vm_a", sshTo(port, target), other)
	if err := g.Forward("vm_b", []network.Forward{sshTo(port, target)}); !errs.HasCode(err, "ssh_port_in_use") {
		t.Errorf("another VM: %v, want ssh_port_in_use", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "got 0 bytes" {
		t.Errorf("the connection was cut: %q, %v", rest, err)
	}
	if !greets(t, other.Host) {
		t.Error("the second port is not open")
	}
}

func TestAChangedForwardIsOpenedAnew(t *testing.T) {
	first, second := echo(t), serve(t, func(c *net.TCPConn) { fmt.Fprintln(c, "second") })
	g, port := open(t, Config{SSH: Kind{Allowed: loopback}}, first)
	published := func(to netip.AddrPort, allowed ...string) network.Forward {
		return network.Forward{Kind: network.ForwardPort, Host: port, Guest: int(to.Port()), Address: to.Addr(), Allowed: prefixes(allowed...)}
	}
	mustForward(t, g, "vm_a", published(second, "127.0.0.0/8"))
	if line, err := bufio.NewReader(call(t, port)).ReadString('\n'); err != nil || line != "second\n" {
		t.Errorf("got %q, %v", line, err)
	}
	mustForward(t, g, "vm_a", published(second, "192.0.2.0/24"))
	if !isClosed(call(t, port)) {
		t.Error("a client that is no longer allowed may come in")
	}
	mustForward(t, g, "vm_a", published(second))
	if !isClosed(call(t, port)) {
		t.Error("published ports allow the clients of SSH ports")
	}
}

// What is left out is closed, also if another cannot be opened.
func TestForwardOpensWhatItCan(t *testing.T) {
	target := echo(t)
	g, old := open(t, Config{SSH: Kind{Allowed: loopback}, Ports: Kind{Allowed: loopback}}, target)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	published := func(port int) network.Forward {
		return network.Forward{Kind: network.ForwardPort, Host: port, Guest: int(target.Port()), Address: target.Addr()}
	}
	busy, free := l.Addr().(*net.TCPAddr).Port, freePort(t)
	err = g.Forward("vm_a", []network.Forward{published(busy), published(free)})
	e, _ := errs.As(err)
	if !errs.HasCode(err, "port_in_use") || e.Hint == "" || !strings.Contains(e.Message, fmt.Sprint(busy)) {
		t.Errorf("got %v, want port_in_use with a hint", err)
	}
	if !greets(t, free) {
		t.Error("the free port is not open")
	}
	if _, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", old), soon); err == nil {
		t.Error("the old port is still open")
	}
}

// A flood of connections to one kind of ports takes no place of the other.
func TestKindsHaveTheirOwnPlaces(t *testing.T) {
	target := echo(t)
	one := Kind{Allowed: loopback, Open: admission.PlaceLimits{Total: 1, PerClient: 1}}
	g, ssh := open(t, Config{SSH: one, Ports: one}, target)
	port := freePort(t)
	mustForward(t, g, "vm_a", sshTo(ssh, target), network.Forward{Kind: network.ForwardPort, Host: port, Guest: int(target.Port()), Address: target.Addr()})
	held := call(t, port)
	if line, err := bufio.NewReader(held).ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if !isClosed(call(t, port)) {
		t.Error("there is a second place")
	}
	if !greets(t, ssh) {
		t.Error("the SSH port has no place left")
	}
}

func TestTheGuestIsReachedForTheClient(t *testing.T) {
	arrived := make(chan Arrival, 2)
	cfg := Config{
		Ports: Kind{Allowed: loopback},
		Wake:  func(_ context.Context, a Arrival) error { arrived <- a; return nil },
		Dial:  func(_ context.Context, a Arrival) (vm.PortConn, error) { arrived <- a; return nil, errors.New("away") },
	}
	g, ssh := open(t, cfg, netip.MustParseAddrPort("127.0.0.1:1"))
	to := network.Forward{Kind: network.ForwardPort, Host: freePort(t), Guest: 5432} // without a network
	mustForward(t, g, "vm_a", sshTo(ssh, netip.MustParseAddrPort("127.0.0.1:1")), to)
	call(t, to.Host)
	for range 2 {
		if a := <-arrived; a.VMID != "vm_a" || !a.Forward.Equal(to) || a.From != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("arrived: %+v", a)
		}
	}
}

func TestAPortOfAnotherProgram(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := New(Config{SSH: Kind{Allowed: loopback}, Log: slog.New(slog.DiscardHandler)})
	defer g.Shutdown()
	err = g.Forward("vm_a", []network.Forward{sshTo(l.Addr().(*net.TCPAddr).Port, netip.MustParseAddrPort("127.0.0.1:1"))})
	var e *errs.Error
	if !errors.As(err, &e) || e.Code != "ssh_port_in_use" || e.Hint == "" {
		t.Errorf("got %v, want ssh_port_in_use with a hint", err)
	}
}
