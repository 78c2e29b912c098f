// Package sshgate is the door to guests' SSH: one TCP listener per VM, and a
// plain copy of bytes to the guest's port 22.
//
// Who is not in the allowed networks is closed at once, before anything is
// dialled. The gate does not speak SSH and knows no keys: that is between the
// client and the guest. Start at [Gate].
package sshgate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// Gate keeps the listeners for VMs' SSH ports.
var _ network.Forwarder = (*Gate)(nil)

const (
	defaultMaxConns = 64
	defaultTimeout  = 10 * time.Second
)

// defaultOpen are the connections to all ports together. No client gets all of them.
var defaultOpen = admission.PlaceLimits{Total: 4096, PerClient: 512}

// waitingOf returns the part of open connections for which a guest may be woken or
// dialled at a time, which costs most and needs no login.
func waitingOf(open admission.PlaceLimits) admission.PlaceLimits {
	return admission.PlaceLimits{Total: max(1, open.Total/8), PerClient: max(1, open.PerClient/4)}
}

// Config says who may come in, and how guests are reached.
type Config struct {
	// Allowed are the networks that clients may come from. When all of them
	// are loopback, the gate listens on loopback only; with none it refuses all.
	Allowed []netip.Prefix
	// Dial reaches a VM; nil dials target by TCP.
	Dial func(ctx context.Context, vmID string, target netip.AddrPort) (net.Conn, error)
	// Wake wakes a VM that sleeps, and is quick about one that does not; nil
	// does nothing. A client is held meanwhile, and so is what it sends.
	Wake     func(ctx context.Context, vmID string) error
	MaxConns int                   // per port; 0 means 64; one client gets half at most
	Open     admission.PlaceLimits // of all ports together; the zero value means 4096, and 512 of a client
	Timeout  time.Duration         // how long a guest that refuses is tried again; 0 means 10 s
	Log      *slog.Logger
}

// Gate implements network.Forwarder. Its methods may be called from several
// goroutines at once.
type Gate struct {
	cfg     Config
	open    *admission.Places // of all ports
	waiting *admission.Places // until the guest is reached
	lines   *admission.Log

	mu     sync.Mutex
	ports  map[int]*forward
	closed bool
}

// New returns a gate that listens nowhere yet.
func New(cfg Config) *Gate {
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.Wake == nil {
		cfg.Wake = func(context.Context, string) error { return nil }
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = defaultMaxConns
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Open == (admission.PlaceLimits{}) {
		cfg.Open = defaultOpen
	}
	return &Gate{
		cfg: cfg, open: admission.NewPlaces(cfg.Open), waiting: admission.NewPlaces(waitingOf(cfg.Open)),
		lines: admission.NewLog(cfg.Log), ports: map[int]*forward{},
	}
}

// Open implements network.Forwarder.
func (g *Gate) Open(vmID string, port int, target netip.AddrPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errs.New(errs.Unavailable, "shutting_down", "port %d cannot be opened: the daemon is shutting down", port)
	}
	if f := g.ports[port]; f != nil {
		if f.vmID == vmID && f.target == target {
			return nil
		}
		return inUse(port, nil)
	}
	listeners, err := listen(g.cfg.Allowed, port)
	if err != nil {
		return err
	}
	g.ports[port] = newForward(g, vmID, target, listeners)
	return nil
}

// Close implements network.Forwarder. It returns when the port's connections have ended.
func (g *Gate) Close(port int) {
	g.mu.Lock()
	f := g.ports[port]
	delete(g.ports, port)
	g.mu.Unlock()
	if f != nil {
		f.close()
	}
}

// Shutdown closes all ports for good and waits until their connections have ended.
func (g *Gate) Shutdown() {
	g.mu.Lock()
	ports := g.ports
	g.ports, g.closed = map[int]*forward{}, true
	g.mu.Unlock()
	var all sync.WaitGroup
	for _, f := range ports {
		all.Go(f.close)
	}
	all.Wait()
	g.lines.Close()
}

// listen opens the port on all addresses that clients may come to.
func listen(allowed []netip.Prefix, port int) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, host := range hosts(allowed) {
		l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if errors.Is(err, syscall.EADDRNOTAVAIL) && host == "::1" && len(listeners) > 0 {
			continue // a host without IPv6
		}
		if err != nil {
			closeAll(listeners)
			if errors.Is(err, syscall.EADDRINUSE) {
				return nil, inUse(port, err)
			}
			return nil, fmt.Errorf("cannot listen on port %d: %w", port, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// hosts returns the addresses to listen on: "" stands for all.
func hosts(allowed []netip.Prefix) []string {
	var four, six bool
	for _, p := range allowed {
		p = unmap(p)
		if !isLoopback(p) {
			return []string{""}
		}
		four, six = four || p.Addr().Is4(), six || p.Addr().Is6()
	}
	if !six {
		return []string{"127.0.0.1"}
	}
	if !four {
		return []string{"::1"}
	}
	return []string{"127.0.0.1", "::1"}
}

func isLoopback(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Addr().IsLoopback() && p.Bits() >= 8
	}
	return p.Addr().IsLoopback() && p.Bits() == 128
}

// unmap turns a prefix of IPv4-mapped addresses into the IPv4 one it means.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

func inUse(port int, cause error) error {
	return errs.New(errs.Conflict, "ssh_port_in_use", "the SSH port %d is in use on this host", port).
		WithHint("see who listens: ss -ltnp 'sport = :%d'; or choose another range with HATCH_SSH_PORT_MIN and HATCH_SSH_PORT_MAX", port).
		WithCause(cause)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

// dialTCP sends no probes to the guest: one that sleeps does not answer them,
// and its connections shall live on.
func dialTCP(ctx context.Context, _ string, target netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	return d.DialContext(ctx, "tcp", target.String())
}
