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
// booting or resetting, or have no agent.
const agentTimeout = 10 * time.Second

// connection has a client of one agent, and connects again when the session is lost.
type connection struct {
	log     *slog.Logger
	dial    vm.DialAgent
	prepare func(context.Context, *wire.Client) error // called before any request, unless nil
	reports *reporter                                 // used by run only
	bootID  string                                    // of the guest in the last session, "" before the first; used by run only
	done    chan struct{}                             // closed when run has ended

	mu       sync.Mutex
	client   *wire.Client  // nil while no agent answers
	changed  chan struct{} // closed and replaced when client changes
	clockLag bool          // the guest has stood still, and nothing has set its clock since
}

func (c *connection) current() (*wire.Client, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client, c.changed
}

func (c *connection) set(client *wire.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client = client
	close(c.changed)
	c.changed = make(chan struct{})
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
	c.bootID = hello.BootID
	c.log.Info("agent answers", "agent", hello.Agent, "boot_id", hello.BootID)
	c.set(client)
	err = client.Watch(ctx, func(st wire.Status) error {
		return c.reports.send(ctx, client.Lost(), report(hello, st))
	})
	c.set(nil)
	return true, errors.Join(err, c.reports.send(ctx, nil, nil))
}
