package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// pretendedCopy becomes what it is told once the test lets it.
type pretendedCopy struct {
	takes   chan error // sent by the test: how each attempt ends
	took    chan wire.Identity
	settled chan wire.Identity
}

func (c *pretendedCopy) Take(ctx context.Context, as wire.Identity) (wire.Self, error) {
	c.took <- as
	select {
	case err := <-c.takes:
		return wire.Self{Hostname: as.Hostname}, err
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
}

func (c *pretendedCopy) Settle(_ context.Context, as wire.Identity) { c.settled <- as }

func newCopy(t *testing.T) (*Agent, *pretendedCopy) {
	t.Helper()
	c := &pretendedCopy{make(chan error, 8), make(chan wire.Identity, 8), make(chan wire.Identity, 8)}
	a := New(slog.New(slog.DiscardHandler), "test")
	a.recasting = newRecasting(c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.settle(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return a, c
}

var someCopy = wire.Identity{Birth: "first", InstanceID: "vm_web", Hostname: "copy"}

func TestCopyIsMadeItselfOnce(t *testing.T) {
	a, c := newCopy(t)
	c.takes <- errors.New("the network: down")
	if _, err := a.recast(t.Context(), someCopy); err == nil || err.Error() != "cannot change the network: down" {
		t.Errorf("got %v", err)
	}
	c.takes <- nil
	for range 3 {
		if self, err := a.recast(t.Context(), someCopy); err != nil || self.Hostname != "copy" {
			t.Errorf("got %+v, %v", self, err)
		}
	}
	if len(c.took) != 2 {
		t.Errorf("it was made itself %d times, want once after the failure", len(c.took)-1)
	}
	if as := <-c.settled; as.InstanceID != "vm_web" || len(c.settled) > 0 {
		t.Errorf("it settled in as %+v, and %d times more", as, len(c.settled))
	}
	c.takes <- nil
	other := wire.Identity{Birth: "second", InstanceID: "vm_web", Hostname: "other"}
	if self, err := a.recast(t.Context(), other); err != nil || self.Hostname != "other" {
		t.Errorf("a copy of the copy is %+v, %v", self, err)
	}
}

// TestCopyIsAskedAgainMeanwhile loses the connection of a request at work.
func TestCopyIsAskedAgainMeanwhile(t *testing.T) {
	a, c := newCopy(t)
	first, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	ask := func(ctx context.Context) {
		_, err := a.recast(ctx, someCopy)
		answers <- err
	}
	go ask(first)
	<-c.took
	impatient, leave := context.WithCancel(t.Context())
	leave()
	if _, err := a.recast(impatient, someCopy); !errors.Is(err, context.Canceled) {
		t.Errorf("while it is at work: %v", err)
	}
	go ask(t.Context())
	cancel()
	if err := <-answers; err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("the lost request: %v", err)
	}
	<-c.took
	c.takes <- nil
	if err := <-answers; err != nil {
		t.Errorf("the second request: %v", err)
	}
}
