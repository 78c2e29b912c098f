package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// seedSize is what a woken guest is given of the host's randomness, in bytes.
const seedSize = 64

// wokenPatience bounds the wait for a woken guest to put itself right.
const wokenPatience = 10 * time.Second

// Rejoin implements [vm.Guests].
func (g *Guests) Rejoin(vmID string, dial func(ctx context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	s := g.session(vmID, dial, observe)
	s.slept = true
	return s.begin()
}

// putRight tells an agent that its guest has slept or is a copy, until one has
// heard it. Nothing else is asked of the guest before: it would be done at a
// wrong time, or by another.
func (s *session) putRight(ctx context.Context, client *wire.Client) error {
	switch {
	case s.copied != nil:
		return s.recast(ctx, client)
	case s.slept:
		return s.wake(ctx, client)
	default:
		return nil
	}
}

func freshSeed() []byte {
	seed := make([]byte, seedSize)
	_, _ = rand.Read(seed) // never fails: it ends the program instead
	return seed
}

func (s *session) wake(ctx context.Context, client *wire.Client) error {
	ctx, cancel := context.WithTimeout(ctx, wokenPatience)
	defer cancel()
	err := client.Woken(ctx, freshSeed())
	var answer *wire.RemoteError
	if errors.As(err, &answer) { // it has heard, and cannot
		s.log.Warn("a guest that slept could not put itself right", "err", err)
		err = nil
	}
	s.slept = err != nil
	return err
}

// SetClock implements [vm.Guest].
func (s *session) SetClock(ctx context.Context) error {
	client, _ := s.current()
	if client == nil {
		return unavailable("no agent answers in the guest")
	}
	if err := client.Woken(ctx, freshSeed()); err != nil {
		return failure(err, func(answer *wire.RemoteError) error {
			return unavailable("the agent in the guest could not set the clock").WithCause(answer)
		})
	}
	return nil
}
