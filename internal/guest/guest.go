// Package guest is hatchd's side of the agents in its guests: it keeps one
// session per VM, across reboots of the guest and restarts of the agent, and
// tells what the agent reports.
//
// It knows neither drivers nor sockets: a connection comes from the dial
// function that it is given. The protocol is in internal/guest/wire, the other
// end in internal/agent. Whatever comes from a guest is bounded and made
// printable here. Start at [Guests.Connect].
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// Waits between two attempts to reach an agent.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Reports beyond this pace wait in the guest: each may cost the host a write
// to its database.
const (
	reportBurst = 20
	reportEvery = 500 * time.Millisecond
)

// Guests implements [vm.Guests].
type Guests struct {
	log *slog.Logger
}

// New returns Guests that log to log.
func New(log *slog.Logger) *Guests { return &Guests{log: log} }

// Connect implements [vm.Guests].
func (g *Guests) Connect(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	return g.session(vmID, dial, observe).begin()
}

func (g *Guests) session(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*vm.GuestReport)) *session {
	return &session{
		log: g.log.With("vm", vmID), dial: dial, observe: observe,
		done: make(chan struct{}), changed: make(chan struct{}),
		pace: wire.Pace{Burst: reportBurst, Every: reportEvery},
	}
}

// begin lets the session go its way until it is closed.
func (s *session) begin() *session {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		s.run(ctx)
	}()
	return s
}

// session implements [vm.Guest].
type session struct {
	log     *slog.Logger
	dial    func(ctx context.Context) (net.Conn, error)
	observe func(*vm.GuestReport)
	cancel  context.CancelFunc
	done    chan struct{} // closed when run has ended
	pace    wire.Pace     // of reports, for run only
	slept   bool          // the guest has not yet been told that it slept; for run only
	copied  *verdict      // of a guest that is a copy; nil for any other

	mu      sync.Mutex
	client  *wire.Client  // nil while no agent answers
	changed chan struct{} // closed and replaced when client changes
}

// Close implements [vm.Guest].
func (s *session) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// Shutdown implements [vm.Guest].
func (s *session) Shutdown(ctx context.Context, reboot bool) error {
	for {
		client, changed := s.current()
		if client != nil {
			err := client.Shutdown(ctx, reboot)
			var refused *wire.RemoteError
			if err == nil {
				return nil
			}
			if errors.As(err, &refused) {
				return unavailable("the agent in the guest could not begin the shutdown").WithCause(err)
			}
		}
		select {
		case <-changed:
		case <-s.done:
			return unavailable("the session with the guest's agent is closed")
		case <-ctx.Done():
			return unavailable("no agent answers in the guest").WithCause(ctx.Err())
		}
	}
}

func unavailable(message string) *errs.Error {
	return errs.New(errs.Unavailable, "agent_unavailable", "%s", message).
		WithHint("wait until the guest has booted, or force the operation")
}

func (s *session) current() (*wire.Client, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client, s.changed
}

func (s *session) set(c *wire.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = c
	close(s.changed)
	s.changed = make(chan struct{})
}

// run goes from one session to the next until ctx is done.
func (s *session) run(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		met, err := s.attend(ctx)
		if ctx.Err() != nil {
			return
		}
		if met {
			retry = firstRetry
		}
		s.log.Debug("no session with the agent", "err", err, "retry_in", retry)
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
}

// attend holds one session from dial to its end, and reports whether an agent
// was met.
func (s *session) attend(ctx context.Context) (met bool, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("cannot reach the guest: %w", err)
	}
	client, err := wire.Connect(ctx, conn)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	hello, err := client.Hello(ctx)
	if err != nil {
		return false, err
	}
	if err := s.putRight(ctx, client); err != nil {
		return true, fmt.Errorf("cannot put the guest right: %w", err)
	}
	hello.Agent, hello.BootID = printable(hello.Agent, maxVersion), printable(hello.BootID, maxVersion)
	s.log.Info("agent answers", "agent", hello.Agent, "boot_id", hello.BootID)
	s.set(client)
	err = s.follow(ctx, client, hello)
	s.set(nil)
	if ctx.Err() == nil {
		s.observe(nil)
	}
	return true, err
}

// follow passes on what the agent reports until the session ends. A report
// that says nothing new is dropped.
func (s *session) follow(ctx context.Context, client *wire.Client, hello wire.Hello) error {
	var last *vm.GuestReport
	return client.Watch(ctx, func(st wire.Status) error {
		r := report(hello, st)
		if last != nil && same(*last, *r) {
			return nil
		}
		last = r
		s.observe(r)
		return s.await(ctx, client, s.pace.Take(time.Now()))
	})
}

var errLost = errors.New("the session is lost")

// await lets the time pass, as long as the session lasts: what a guest has sent
// in advance is not worth a flood.
func (s *session) await(ctx context.Context, client *wire.Client, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-client.Lost():
		return errLost
	case <-ctx.Done():
		return ctx.Err()
	}
}
