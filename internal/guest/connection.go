package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

// Backoff between attempts to reach an agent.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// agentTimeout is how long a request waits for an agent that answers: the guest may be
// booting or resetting, or have no agent. Since the loss of an agent it waits lostTimeout,
// and since a guest that said so has gone down rebootTimeout.
const (
	agentTimeout  = 10 * time.Second
	lostTimeout   = 20 * time.Second
	rebootTimeout = 3 * time.Minute
)

// connection has a client of one agent, and connects again when the session is lost.
type connection struct {
	log     *slog.Logger
	dial    vm.DialAgent
	prepare func(context.Context, *wire.Client) error // called before any request, unless nil
	trust   *wire.SSHTrust                            // whose certificates the guest accepts, or nil
	reports *reporter                                 // used by run only
	done    chan struct{}                             // closed when run has ended

	mu        sync.Mutex
	client    *wire.Client  // nil while no agent answers
	bootID    string        // of the guest in the last session, "" before the first
	goingDown bool          // as the guest reported in this session
	backBy    time.Time     // when the guest must answer again after the loss of a session
	changed   chan struct{} // closed and replaced when client or goingDown changes
	clockLag  bool          // the guest has stood still, and nothing has set its clock since
}

func (c *connection) current() (*wire.Client, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client, c.changed
}

// set stores the client of a new session with a boot of the guest.
func (c *connection) set(client *wire.Client, bootID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client, c.bootID, c.goingDown = client, bootID, false
	c.change()
}

// unset stores that the session is lost.
func (c *connection) unset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client, c.backBy = nil, time.Now().Add(lostTimeout)
	if c.goingDown {
		c.backBy = time.Now().Add(rebootTimeout)
	}
	c.change()
}

// setGoingDown stores whether the guest shuts down or reboots.
func (c *connection) setGoingDown(now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.goingDown != now {
		c.goingDown = now
		c.change()
	}
}

// change wakes those that wait for a change. Precondition: mu is held.
func (c *connection) change() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// statusTimeout bounds the wait for a status. An agent that lets it pass is asked for what
// it is wanted for all the same, and that request has limits of its own.
const statusTimeout = 5 * time.Second

func statusOf(ctx context.Context, client *wire.Client) (wire.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return client.Status(ctx)
}

// begin is wait for what begins something in the guest: in one that shuts down or reboots
// it waits for the next boot. It returns that boot's id, too.
func (c *connection) begin(ctx context.Context) (_ *wire.Client, bootID string, err error) {
	c.mu.Lock()
	limit, extended := max(agentTimeout, time.Until(c.backBy)), false
	c.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		c.mu.Lock()
		client, bootID, changed := c.client, c.bootID, c.changed
		c.mu.Unlock()
		if client != nil && !client.IsLost() {
			st, err := statusOf(ctx, client)
			if !st.GoingDown && (err == nil || !client.IsLost()) {
				return client, bootID, nil // the request shows an error, too
			}
			if !extended {
				limit = lostTimeout
				if st.GoingDown {
					limit = rebootTimeout
				}
				timer.Reset(limit)
				extended = true
			}
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, "", noAgent()
		case <-c.done:
			return nil, "", sessionClosed()
		case <-ctx.Done():
			return nil, "", noAgent().WithCause(ctx.Err())
		}
	}
}

// wait returns the client of an agent that answers.
// Errors: errs.Unavailable with code agent_unavailable after agentTimeout.
func (c *connection) wait(ctx context.Context) (*wire.Client, error) {
	timer := time.NewTimer(agentTimeout)
	defer timer.Stop()
	for {
		client, changed := c.current()
		if client != nil && !client.IsLost() {
			return client, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, noAgent()
		case <-c.done:
			return nil, sessionClosed()
		case <-ctx.Done():
			return nil, noAgent().WithCause(ctx.Err())
		}
	}
}

// run serves one session after the other until ctx is done.
func (c *connection) run(ctx context.Context) {
	defer close(c.done)
	retry := backoff.New(minBackoff, maxBackoff)
	for ctx.Err() == nil {
		answered, err := c.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if answered {
			retry.Reset()
		}
		wait := retry.Next()
		c.log.Debug("no session with the agent", logkey.Error, err, logkey.RetryIn, wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// serve dials, and passes on reports until the session ends. It returns whether an agent
// answered.
func (c *connection) serve(ctx context.Context) (answered bool, err error) {
	conn, err := c.dial(ctx)
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
	if c.prepare != nil {
		if err := c.prepare(ctx, client); err != nil {
			return true, fmt.Errorf("cannot prepare the guest: %w", err)
		}
	}
	hello.Agent, hello.BootID = printable(hello.Agent, maxVersion), printable(hello.BootID, maxVersion)
	if err := c.correctClock(ctx, client, hello.BootID); err != nil {
		return true, fmt.Errorf("cannot set the guest's clock: %w", err)
	}
	if err := c.trustSSH(ctx, client); err != nil {
		return true, fmt.Errorf("cannot have the guest trust SSH certificates: %w", err)
	}
	c.log.Info("agent answers", "agent", hello.Agent, "boot_id", hello.BootID)
	c.set(client, hello.BootID)
	err = client.Watch(ctx, func(st wire.Status) error {
		c.setGoingDown(st.GoingDown)
		return c.reports.send(ctx, client.Lost(), report(hello, st))
	})
	c.unset()
	return true, errors.Join(err, c.reports.send(ctx, nil, nil))
}
