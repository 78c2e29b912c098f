// Package reach is the one road into guests: sessions with their agents and
// connections to their ports. It wakes a sleeping VM on the way in and counts
// what is in use, and why, until it is released.
//
// It decides nothing about idle VMs, but lets one fall asleep only in one step with
// the arrivals ([Reach.FallAsleepIfIdle]): none is lost. It knows no protocol that is
// spoken over a session or a connection. Start at [Reach.Open]; [Reach.Dial] is for
// ports; ledger.go counts.
package reach

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
)

// Cause says what a VM is used for.
type Cause string

// The causes.
const (
	Exec    Cause = "exec"    // a process in the guest, or its streams
	Files   Cause = "files"   // files of the guest
	Console Cause = "console" // an attached serial console
	SSH     Cause = "ssh"     // a connection through the VM's SSH port
	Route   Cause = "route"   // a request through a route
	Port    Cause = "port"    // a connection through a published port
	Tunnel  Cause = "tunnel"  // a connection that a client of the API has opened to a port
	Wait    Cause = "wait"    // a wait for something in the guest, and its probes
)

// Mode says what to do with a VM that sleeps.
type Mode int

const (
	// Wake wakes a sleeping VM.
	Wake Mode = iota
	// NoWake leaves it asleep: the use fails with errs.Conflict.
	NoWake
)

// Locker waits for operations on VMs.
type Locker interface {
	// LockRecovered waits for startup recovery and for the VM's lock.
	LockRecovered(ctx context.Context, id string) (unlock func(), err error)
}

// Waker wakes sleeping VMs. Its context carries what for; see vm.ArrivalOf.
type Waker interface {
	// WakeOnDemand is WakeIfAsleep, and quick about a VM that runs.
	WakeOnDemand(ctx context.Context, id string) error
	// WakeIfAsleep wakes the VM if it sleeps, after a sleep or a wake that is in
	// progress.
	WakeIfAsleep(ctx context.Context, id string) error
}

// Config is what a Reach needs. All fields are required, but for WakeTimeout.
type Config struct {
	Store vm.Reader
	Live  *live.Registry
	Locks Locker
	Waker Waker
	// WakeTimeout bounds how long a caller waits until a VM is awake; 0 means that only its
	// own context does. The wake goes on.
	WakeTimeout time.Duration
	// DialNetwork connects to a guest's address.
	DialNetwork func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Reach leads into guests.
type Reach struct {
	cfg Config

	quiet func(id string) // see OnQuiet; may be nil

	mu      sync.Mutex
	ledgers map[string]*ledger // by VM id
}

// New returns a Reach.
func New(cfg Config) *Reach { return &Reach{cfg: cfg, ledgers: map[string]*ledger{}} }

// Open returns the session with the agent of a VM in scope. The VM counts as used
// for cause from the call, its wake included, until release is called. release may
// be called more than once, and is nil after an error. With Wake, but for the console,
// the guest is not one that shuts down or reboots: the next boot is waited for, as long
// as ctx allows. A VM that is falling asleep is waited for, and then woken. A use with
// NoWake only looks, and does not keep the VM awake.
//
// Errors: errs.NotFound; errs.Conflict with code vm_not_running, also for a
// sleeping VM with NoWake, or vm_paused; errs.Unavailable with code starting_up;
// errs.TimedOut with code vm_busy; with Wake, those of Awake and of vm.Guest.Up.
func (r *Reach) Open(ctx context.Context, scope access.Scope, id string, cause Cause, mode Mode) (_ vm.Session, release func(), err error) {
	end := r.begin(ctx, id, &Use{Cause: cause, passive: mode == NoWake})
	var m *live.Machine
	err = r.steadily(ctx, id, func() (err error) {
		m, err = r.machine(ctx, scope, id, cause, mode)
		if err == nil && mode == Wake && cause != Console { // what only looks at a guest may do so in a boot that ends
			_, err = m.Guest.Up(ctx)
		}
		return err
	})
	if err != nil {
		end(false)
		return nil, nil, err
	}
	return m.Guest, func() { end(true) }, nil
}

// Awake returns the VM after it was woken if it slept. After an error of the wake
// it returns the VM as it was before, and the error. A VM that must not fall asleep again
// at once is held by its caller before. Errors: errs.NotFound; those of a wake;
// errs.TimedOut with code wake_timeout.
func (r *Reach) Awake(ctx context.Context, scope access.Scope, id string) (v vm.VM, err error) {
	err = r.waking(ctx, id, func(ctx context.Context) error {
		now, err := r.cfg.Store.VM(ctx, scope, id)
		if v = now; err != nil || !v.Asleep() {
			return err
		}
		if err := r.cfg.Waker.WakeIfAsleep(vm.WithArrival(ctx, r.arrival(ctx, id)), id); err != nil {
			return err
		}
		v, err = r.cfg.Store.VM(ctx, scope, id)
		return err
	})
	return v, err
}

// WakeOnDemand wakes a VM if it sleeps, after a sleep in progress, for callers that have
// no scope: the clients of its ports. They hold the VM before.
func (r *Reach) WakeOnDemand(ctx context.Context, id string) error {
	return r.waking(ctx, id, func(ctx context.Context) error {
		return r.cfg.Waker.WakeOnDemand(vm.WithArrival(ctx, r.arrival(ctx, id)), id)
	})
}

// waking calls wake steadily, for as long as the server lets callers wait. Which door they
// come through, and how patient they are, makes no difference.
func (r *Reach) waking(ctx context.Context, id string, wake func(context.Context) error) error {
	if r.cfg.WakeTimeout == 0 {
		return r.steadily(ctx, id, func() error { return wake(ctx) })
	}
	bounded, cancel := context.WithTimeout(ctx, r.cfg.WakeTimeout)
	defer cancel()
	err := r.steadily(bounded, id, func() error { return wake(bounded) })
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return errs.New(errs.TimedOut, "wake_timeout", "cannot reach VM %s: it was not awake within %s", id, r.cfg.WakeTimeout).
			WithHint("its wake goes on; try again, or set HATCH_WAKE_TIMEOUT").WithVM(id).WithCause(err)
	}
	return err
}

// machine returns the machine of a VM in scope that runs. A machine that this
// hatchd does not hold yet is being adopted or connected by an operation, which is
// waited for: adopting it here as well would hold it twice.
func (r *Reach) machine(ctx context.Context, scope access.Scope, id string, cause Cause, mode Mode) (*live.Machine, error) {
	read := r.cfg.Store.VM
	if mode == Wake {
		read = r.Awake
	}
	v, err := read(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	verb := verbOf(cause, mode)
	if v.State == vm.Paused && cause != Console { // it would wait for an agent that cannot answer
		return nil, errs.New(errs.Conflict, "vm_paused", "cannot %s VM %s: it is paused", verb, v.ID).WithHint("resume it")
	}
	if m, err := r.cfg.Live.Get(ctx, v, live.Held); m != nil || err != nil {
		return m, err
	}
	if v.Machine == nil {
		return r.cfg.Live.Running(ctx, v, verb) // which says why it does not run
	}
	unlock, err := r.cfg.Locks.LockRecovered(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v, err = r.cfg.Store.VM(ctx, scope, id); err != nil {
		return nil, err
	}
	return r.cfg.Live.Running(ctx, v, verb)
}

// verbOf returns what cannot be done, for an error.
func verbOf(cause Cause, mode Mode) string {
	switch {
	case cause == Console:
		return "attach to the console of"
	case mode == NoWake:
		return "look inside"
	default:
		return "work inside"
	}
}

// networkTimeout bounds an attempt by the network before the agent is tried.
const networkTimeout = 2 * time.Second

// Dial connects to a port of the guest of a VM in scope, and of nothing else: through
// its network, or through its agent, which also reaches what listens on loopback. It
// wakes no VM, so that a probe cannot; call Awake before. The VM counts as used for
// cause until the connection is closed.
//
// Errors: errs.NotFound; errs.Unavailable with code port_closed; without a network
// those of vm.Guest.Dial.
func (r *Reach) Dial(ctx context.Context, scope access.Scope, id string, port int, cause Cause) (vm.PortConn, error) {
	v, err := r.cfg.Store.VM(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	if v.EnableNetwork {
		bounded, cancel := context.WithTimeout(ctx, networkTimeout)
		defer cancel()
		if conn, err := r.DialNetwork(bounded, v.ID, netip.AddrPortFrom(v.Lease.Address, uint16(port)), cause); err == nil {
			return conn, nil
		}
	}
	end := r.begin(ctx, v.ID, &Use{Cause: cause})
	m, err := r.cfg.Live.Get(ctx, v, live.Held)
	if m == nil || err != nil {
		end(false)
		return nil, PortClosed(port).WithCause(err)
	}
	conn, err := m.Guest.Dial(ctx, port)
	if err != nil {
		end(false)
		if v.EnableNetwork || ctx.Err() != nil {
			return nil, PortClosed(port).WithCause(err)
		}
		return nil, err
	}
	return &counted{Conn: conn, end: end}, nil
}

// DialNetwork connects to an address of the guest through its network only. It has no
// scope: it is for callers that have checked theirs, and for a VM's SSH port, whose
// clients have no user. The VM counts as used for cause until the connection is
// closed; but only bytes that it moves keep the VM awake, because it outlives a sleep.
func (r *Reach) DialNetwork(ctx context.Context, id string, to netip.AddrPort, cause Cause) (vm.PortConn, error) {
	moved := &atomic.Int64{}
	moved.Store(time.Now().UnixNano())
	end := r.begin(ctx, id, &Use{Cause: cause, moved: moved})
	conn, err := r.cfg.DialNetwork(ctx, to)
	if err != nil {
		end(false)
		return nil, err
	}
	return &counted{Conn: conn, end: end, moved: moved}, nil
}

// PortClosed is the error of a port that accepts no connections.
func PortClosed(port int) *errs.Error {
	return errs.New(errs.Unavailable, "port_closed", "port %d accepts no connections", port)
}

// counted is a connection whose end ends a use.
type counted struct {
	net.Conn
	end   func(tookPlace bool)
	moved *atomic.Int64 // of the use; nil if the connection keeps the VM awake by itself
}

// Read notes when bytes came.
func (c *counted) Read(p []byte) (n int, err error) {
	n, err = c.Conn.Read(p)
	c.note(n)
	return n, err
}

// Write notes when bytes went.
func (c *counted) Write(p []byte) (n int, err error) {
	n, err = c.Conn.Write(p)
	c.note(n)
	return n, err
}

func (c *counted) note(bytes int) {
	if bytes > 0 && c.moved != nil {
		c.moved.Store(time.Now().UnixNano())
	}
}

// Close closes the connection and ends its use.
func (c *counted) Close() error {
	defer c.end(true)
	return c.Conn.Close()
}

// CloseWrite ends the sending half; a connection that has none is closed.
func (c *counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
