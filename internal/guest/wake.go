package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// seedSize is the size of the seed that a guest gets, in bytes.
const seedSize = 64

// clockTimeout is how long a guest may take to set its clock and to reseed its random
// number generator.
const clockTimeout = 10 * time.Second

// noteClockLag has the guest's clock set in the next session, unless this one does it:
// a guest that was paused for long has lost its session.
func (c *connection) noteClockLag() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clockLag = true
}

// correctClock sets the clock of a guest that has stood still, before any request. A
// session that was lost within one boot of the guest means that it may have done so,
// such as under a VMM that was stopped.
func (c *connection) correctClock(ctx context.Context, client *wire.Client, bootID string) error {
	c.mu.Lock()
	lags := c.clockLag || bootID == c.bootID
	c.mu.Unlock()
	if !lags {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	err := c.setClock(ctx, client)
	if _, ok := errors.AsType[*wire.RemoteError](err); ok { // a retry would fail, too
		c.log.Warn("cannot set the clock and seed of a guest that stood still", logkey.Error, err)
		return nil
	}
	return err
}

// setClock sends the time and a seed to the agent.
func (c *connection) setClock(ctx context.Context, client *wire.Client) error {
	err := client.Woken(ctx, newSeed())
	if _, refused := errors.AsType[*wire.RemoteError](err); err != nil && !refused {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clockLag = false
	return err
}

func newSeed() []byte {
	seed := make([]byte, seedSize)
	_, _ = rand.Read(seed) // never fails: it ends the program instead
	return seed
}
