// Package portgate is the door to TCP ports of guests: one listener per SSH port and
// per published port, and a plain copy of bytes to the guest.
//
// A client that is not in the allowed networks is closed at once, before anything is
// dialled. The gate speaks no protocol and knows no keys: those are between the
// client and the guest. Start at [Gate].
package portgate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// Gate keeps the listeners for VMs' ports.
var _ network.Forwarder = (*Gate)(nil)

const (
	defaultMaxConns = 64
	defaultTimeout  = 10 * time.Second
)

// defaultOpen are the connections to all ports of a kind together. No client gets all of them.
var defaultOpen = admission.PlaceLimits{Total: 4096, PerClient: 512}

// waitingOf returns the part of open connections for which a guest may be woken or
// dialled at a time, which costs most and needs no login. No client gets more than a
// quarter of it.
func waitingOf(open admission.PlaceLimits) admission.PlaceLimits {
	total := max(1, open.Total/8)
	return admission.PlaceLimits{Total: total, PerClient: max(1, min(open.PerClient, total)/4)}
}

// Arrival is a client's connection to a forward.
type Arrival struct {
	VMID string
	network.Forward
	From netip.Addr
}

// Session is a connection that has ended.
type Session struct {
	Arrival
	Took  time.Duration
	Bytes int64 // both ways
	Err   error // the guest was not reached; nil otherwise
}

// Config says who may come in, and how guests are reached.
type Config struct {
	SSH, Ports Kind // of VMs' SSH ports and of published ports

	// Dial reaches a guest. Wake wakes a VM that sleeps, and is quick about one that does
	// not; nil does nothing. A client is held meanwhile, and so is what it sends.
	Dial func(ctx context.Context, a Arrival) (vm.PortConn, error)
	Wake func(ctx context.Context, a Arrival) error

	// Ended is called once a client that was let in has left; nil: nothing is called.
	Ended func(Session)

	Timeout time.Duration // how long a guest that refuses is tried again; 0 means 10 s
	Log     *slog.Logger
}

// Kind has the limits on forwards of one kind. Those of the other have their own places.
type Kind struct {
	// Allowed are the networks that clients of a forward without its own may come from.
	// When all networks of a forward are loopback, the gate listens on loopback only;
	// with none it refuses all.
	Allowed  []netip.Prefix
	MaxConns int                   // per port; 0 means 64; one client gets half at most
	Open     admission.PlaceLimits // of all ports together; the zero value means 4096, and 512 of a client
}

// kind is a Kind at work.
type kind struct {
	Kind
	name    string            // for the log
	open    *admission.Places // of all ports
	waiting *admission.Places // until the guest is reached
}

func newKind(name string, k Kind) *kind {
	if k.MaxConns == 0 {
		k.MaxConns = defaultMaxConns
	}
	if k.Open == (admission.PlaceLimits{}) {
		k.Open = defaultOpen
	}
	return &kind{Kind: k, name: name, open: admission.NewPlaces(k.Open), waiting: admission.NewPlaces(waitingOf(k.Open))}
}

// Gate implements network.Forwarder. Its methods may be called from several
// goroutines at once, but Forward only once at a time for a VM.
type Gate struct {
	cfg   Config
	kinds map[network.ForwardKind]*kind
	lines *admission.Log

	mu     sync.Mutex
	ports  map[int]*forward
	closed bool
}

// New returns a gate that listens nowhere yet.
func New(cfg Config) *Gate {
	if cfg.Wake == nil {
		cfg.Wake = func(context.Context, Arrival) error { return nil }
	}
	if cfg.Ended == nil {
		cfg.Ended = func(Session) {}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	return &Gate{
		cfg: cfg, lines: admission.NewLog(cfg.Log), ports: map[int]*forward{},
		kinds: map[network.ForwardKind]*kind{network.ForwardSSH: newKind("SSH", cfg.SSH), network.ForwardPort: newKind("connection to a published port", cfg.Ports)},
	}
}

// Forward implements network.Forwarder. It returns when the connections of what it
// closes have ended.
func (g *Gate) Forward(vmID string, forwards []network.Forward) error {
	g.closeBut(vmID, forwards)
	var failures []error
	for _, to := range forwards {
		failures = append(failures, g.open(vmID, to))
	}
	return errors.Join(failures...)
}

// closeBut closes the forwards of a VM that are not in keep as they are.
func (g *Gate) closeBut(vmID string, keep []network.Forward) {
	var all sync.WaitGroup
	defer all.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for port, f := range g.ports {
		if f.vmID == vmID && !slices.ContainsFunc(keep, f.is) {
			delete(g.ports, port)
			all.Go(f.close)
		}
	}
}

func (g *Gate) open(vmID string, to network.Forward) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errs.New(errs.Unavailable, "shutting_down", "port %d cannot be opened: the daemon is shutting down", to.Host)
	}
	if f := g.ports[to.Host]; f != nil {
		if f.vmID == vmID && f.is(to) {
			return nil
		}
		return inUse(to, nil)
	}
	of := g.kinds[to.Kind]
	allowed := of.Allowed
	if to.Allowed != nil {
		allowed = to.Allowed
	}
	listeners, err := listen(allowed, to)
	if err != nil {
		return err
	}
	g.ports[to.Host] = newForward(g, of, vmID, to, allowed, listeners)
	return nil
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

// listen opens the host port on all addresses that clients may come to.
func listen(allowed []netip.Prefix, to network.Forward) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, host := range hosts(allowed) {
		l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(to.Host)))
		if errors.Is(err, syscall.EADDRNOTAVAIL) && host == "::1" && len(listeners) > 0 {
			continue // a host without IPv6
		}
		if err != nil {
			closeAll(listeners)
			if errors.Is(err, syscall.EADDRINUSE) {
				return nil, inUse(to, err)
			}
			return nil, fmt.Errorf("cannot listen on port %d: %w", to.Host, err)
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

func inUse(to network.Forward, cause error) error {
	if to.Kind == network.ForwardPort {
		return network.PortInUse(to.Host).WithCause(cause)
	}
	return errs.New(errs.Conflict, "ssh_port_in_use", "the SSH port %d is in use on this host", to.Host).
		WithHint("see who listens: ss -ltnp 'sport = :%d'; or choose another range with HATCH_SSH_PORT_MIN and HATCH_SSH_PORT_MAX", to.Host).
		WithCause(cause)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}
