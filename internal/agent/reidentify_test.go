package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// fakeClone changes its identity when the test says how that ends.
type fakeClone struct {
	results  chan error // sent by the test: the result of each attempt
	attempts chan wire.Identity
	finished chan wire.Identity
}

func (c *fakeClone) Reidentify(ctx context.Context, as wire.Identity) (wire.Self, error) {
	c.attempts <- as
	select {
	case err := <-c.results:
		return wire.Self{Hostname: as.Hostname}, err
	case <-ctx.Done():
		return wire.Self{}, ctx.Err()
	}
}

func (c *fakeClone) Finish(_ context.Context, as wire.Identity) { c.finished <- as }

func newClone(t *testing.T) (*Agent, *fakeClone) {
	t.Helper()
	c := &fakeClone{make(chan error, 8), make(chan wire.Identity, 8), make(chan wire.Identity, 8)}
	a := New(slog.New(slog.DiscardHandler), "test")
	a.reidentifier = newReidentifier(c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.finishIdentities(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return a, c
}

var someIdentity = wire.Identity{CloneID: "first", InstanceID: "vm_web", Hostname: "clone"}

func TestIdentityIsChangedOnce(t *testing.T) {
	a, c := newClone(t)
	c.results <- errors.New("the network: down")
	if _, err := a.reidentify(t.Context(), someIdentity); err == nil || err.Error() != "cannot change the network: down" {
		t.Errorf("got %v", err)
	}
	c.results <- nil
	for range 3 {
		if self, err := a.reidentify(t.Context(), someIdentity); err != nil || self.Hostname != "clone" {
			t.Errorf("got %+v, %v", self, err)
		}
	}
	if len(c.attempts) != 2 {
		t.Errorf("it changed its identity %d times after the failure, want 1", len(c.attempts)-1)
	}
	if as := <-c.finished; as.InstanceID != "vm_web" || len(c.finished) > 0 {
		t.Errorf("%+v was finished, and %d more", as, len(c.finished))
	}
	c.results <- nil
	other := wire.Identity{CloneID: "second", InstanceID: "vm_web", Hostname: "other"}
	if self, err := a.reidentify(t.Context(), other); err != nil || self.Hostname != "other" {
		t.Errorf("a clone of the clone is %+v, %v", self, err)
	}
}

// TestConcurrentRequests cancels a request that is being served.
func TestConcurrentRequests(t *testing.T) {
	a, c := newClone(t)
	first, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	ask := func(ctx context.Context) {
		_, err := a.reidentify(ctx, someIdentity)
		answers <- err
	}
	go ask(first)
	<-c.attempts
	cancelled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	if _, err := a.reidentify(cancelled, someIdentity); !errors.Is(err, context.Canceled) {
		t.Errorf("during the first request: %v", err)
	}
	go ask(t.Context())
	cancel()
	if err := <-answers; err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("the cancelled request: %v", err)
	}
	<-c.attempts
	c.results <- nil
	if err := <-answers; err != nil {
		t.Errorf("the second request: %v", err)
	}
}
