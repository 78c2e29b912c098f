// Package guest is hatchd's side of the sessions with the agents in its guests: one
// session per VM, across reboots of the guest and restarts of the agent.
//
// It does not know drivers and sockets: callers pass a function that dials. The
// protocol is in internal/guest/wire, the agent in internal/agent. This package limits
// all data from a guest and makes it printable. Start at [Guests.Connect].
package guest

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

// Guests implements [vm.Guests].
type Guests struct {
	log       *slog.Logger
	authority string
}

// New returns Guests that log to log. Their SSH servers accept certificates of authority,
// a public key in authorized_keys form; "" for none.
func New(log *slog.Logger, authority string) *Guests { return &Guests{log: log, authority: authority} }

// Connect implements [vm.Guests].
func (g *Guests) Connect(vmID string, dial vm.DialAgent, observe vm.ObserveReport) vm.Session {
	return open(g.connection(vmID, dial, observe), nil)
}

// Rejoin implements [vm.Guests].
func (g *Guests) Rejoin(vmID string, dial vm.DialAgent, observe vm.ObserveReport) vm.Session {
	c := g.connection(vmID, dial, observe)
	c.clockLag = true
	return open(c, nil)
}

// Reidentify implements [vm.Guests].
func (g *Guests) Reidentify(vmID string, dial vm.DialAgent, observe vm.ObserveReport, as vm.Identity) vm.Session {
	c := g.connection(vmID, dial, observe)
	clone := newClone(c.log, as, c.trust)
	c.prepare = clone.reidentify
	return open(c, clone)
}

func (g *Guests) connection(vmID string, dial vm.DialAgent, observe vm.ObserveReport) *connection {
	c := &connection{
		log: g.log.With(logkey.VM, vmID), dial: dial, reports: newReporter(observe),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	if g.authority != "" {
		c.trust = &wire.SSHTrust{Authority: g.authority, Principal: vmID}
	}
	return c
}

// session implements [vm.Session].
type session struct {
	processes
	files
	agent  *connection
	clone  *clone // nil if the guest is not a clone
	cancel context.CancelFunc
}

// open opens a session, and runs its connection until Close.
func open(c *connection, clone *clone) vm.Session {
	ctx, cancel := context.WithCancel(context.Background())
	go c.run(ctx)
	return &session{processes: processes{c}, files: files{c}, agent: c, clone: clone, cancel: cancel}
}

// Close implements [vm.Guest].
func (s *session) Close() error {
	s.cancel()
	<-s.agent.done
	return nil
}

// Confirmed implements [vm.Guest].
func (s *session) Confirmed(ctx context.Context) error {
	if s.clone == nil {
		return nil
	}
	return s.clone.confirmed(ctx, s.agent.done)
}

// Shutdown implements [vm.Guest].
func (s *session) Shutdown(ctx context.Context, reboot bool, accepted func()) error {
	var asked *wire.Client // that has accepted
	for {
		client, changed := s.agent.current()
		if client != nil && client != asked {
			err := client.Shutdown(ctx, reboot)
			if _, ok := errors.AsType[*wire.RemoteError](err); ok {
				return unavailable("the agent in the guest could not start the shutdown").WithCause(err)
			}
			if err == nil {
				asked = client
				accepted()
			}
			if err == nil && reboot {
				return nil
			}
		}
		select {
		case <-changed:
		case <-s.agent.done:
			return sessionClosed()
		case <-ctx.Done():
			return noAgent().WithCause(ctx.Err())
		}
	}
}

// Up implements [vm.Guest].
func (s *session) Up(ctx context.Context) (bootID string, err error) {
	_, bootID, err = s.agent.begin(ctx)
	return bootID, err
}

// SetClock implements [vm.Guest].
func (s *session) SetClock(ctx context.Context) error {
	s.agent.noteClockLag()
	client, _ := s.agent.current()
	if client == nil {
		return nil
	}
	if err := s.agent.setClock(ctx, client); err != nil {
		return requestError(err, func(answer *wire.RemoteError) error {
			return unavailable("the agent in the guest could not set the clock").WithCause(answer)
		})
	}
	return nil
}

// Dial implements [vm.Guest].
func (s *session) Dial(ctx context.Context, port int) (net.Conn, error) {
	client, _, err := s.agent.begin(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := client.Dial(ctx, port)
	if err == nil {
		return conn, nil
	}
	return nil, requestError(err, func(answer *wire.RemoteError) error {
		if answer.Code == wire.CodeRefused {
			return errs.New(errs.Unavailable, "port_refused", "no program listens on port %d in the guest", port).WithCause(answer)
		}
		return errs.New(errs.Unavailable, "port_unreachable", "the agent in the guest cannot connect to port %d", port).WithCause(answer)
	})
}
