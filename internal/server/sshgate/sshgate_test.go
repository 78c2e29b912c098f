package sshgate

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

// open opens a gate to a guest on a free port, and returns both.
func open(t *testing.T, cfg Config, target netip.AddrPort) (*Gate, int) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	g := New(cfg)
	return g, openPort(t, g, target)
}

// openPort opens a free port of a gate, which is shut down at the end of the test.
func openPort(t *testing.T, g *Gate, target netip.AddrPort) int {
	t.Helper()
	t.Cleanup(g.Shutdown)
	for range 20 {
		port := freePort(t)
		err := g.Open("vm_a", port, target)
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
	_, port := open(t, Config{Allowed: loopback}, echo(t))
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
	count := func(context.Context, string, netip.AddrPort) (net.Conn, error) {
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
			_, port := open(t, Config{Allowed: allowed, Dial: count}, netip.MustParseAddrPort("127.0.0.1:1"))
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
	booting := func(ctx context.Context, vmID string, to netip.AddrPort) (net.Conn, error) {
		if tries.Add(1) < 3 {
			return nil, syscall.ECONNREFUSED
		}
		return dialTCP(ctx, vmID, to)
	}
	_, port := open(t, Config{Allowed: loopback, Dial: booting}, target)
	if line, err := bufio.NewReader(call(t, port)).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestADeadGuestIsGivenUp(t *testing.T) {
	refused := func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	_, port := open(t, Config{Allowed: loopback, Dial: refused, Timeout: 50 * time.Millisecond}, netip.MustParseAddrPort("127.0.0.1:1"))
	if !isClosed(call(t, port)) {
		t.Error("not closed")
	}
}

func TestTooManyConnectionsAreClosed(t *testing.T) {
	_, port := open(t, Config{Allowed: loopback, MaxConns: 1}, echo(t))
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
	g, port := open(t, Config{Allowed: loopback}, echo(t))
	c := call(t, port)
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	g.Close(port)
	g.Close(port)
	if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection lives on: %v", err)
	}
	if _, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), soon); err == nil {
		t.Error("the port is still open")
	}
}

func TestCloseEndsADial(t *testing.T) {
	dialling := make(chan struct{})
	hang := func(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
		close(dialling)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g, port := open(t, Config{Allowed: loopback, Dial: hang, Timeout: time.Hour}, netip.MustParseAddrPort("127.0.0.1:1"))
	c := call(t, port)
	<-dialling
	g.Close(port)
	if !isClosed(c) {
		t.Error("not closed")
	}
}

func TestOpenAgain(t *testing.T) {
	target := netip.MustParseAddrPort("127.0.0.1:1")
	g, port := open(t, Config{Allowed: loopback}, target)
	if err := g.Open("vm_a", port, target); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for name, err := range map[string]error{
		"another VM":     g.Open("vm_b", port, target),
		"another target": g.Open("vm_a", port, netip.MustParseAddrPort("127.0.0.1:2")),
	} {
		if errs.KindOf(err) != errs.Conflict {
			t.Errorf("%s: %v, want Conflict", name, err)
		}
	}
}

func TestAPortOfAnotherProgram(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := New(Config{Allowed: loopback, Log: slog.New(slog.DiscardHandler)})
	defer g.Shutdown()
	err = g.Open("vm_a", l.Addr().(*net.TCPAddr).Port, netip.MustParseAddrPort("127.0.0.1:1"))
	var e *errs.Error
	if !errors.As(err, &e) || e.Code != "ssh_port_in_use" || e.Hint == "" {
		t.Errorf("got %v, want ssh_port_in_use with a hint", err)
	}
}
