package vm

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestTurnsAreFair(t *testing.T) {
	all := newTurns(2, 2, make(chan struct{}))
	var first []func()
	for range 2 {
		done, err := all.take(t.Context(), "busy")
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, done)
	}
	gone := make(chan string)
	var waiters []*waiter
	for _, owner := range []string{"busy", "busy", "late"} {
		w := all.enter(owner)
		waiters = append(waiters, w)
		go func() { <-w.turn; gone <- owner }()
	}
	var order []string
	for _, done := range first {
		done()
		order = append(order, <-gone)
	}
	if want := []string{"late", "busy"}; !slices.Equal(order, want) {
		t.Errorf("went %v, want %v", order, want)
	}
	if all.free != 0 || len(all.waiting) != 1 {
		t.Errorf("%d are free, and %d wait", all.free, len(all.waiting))
	}
	all.leave(waiters[0])
	if last := <-gone; last != "busy" {
		t.Errorf("the last was %s", last)
	}
}

func TestOneOwnerLeavesATurnToOthers(t *testing.T) {
	all := newTurns(2, 1, make(chan struct{}))
	first, second, other := all.enter("busy"), all.enter("busy"), all.enter("other")
	<-first.turn
	<-other.turn
	if all.free != 0 || !slices.Equal(all.waiting, []*waiter{second}) {
		t.Errorf("%d are free, and %d wait", all.free, len(all.waiting))
	}
	all.leave(other) // which is not for the second
	if all.free != 1 || len(all.waiting) != 1 {
		t.Errorf("%d are free, and %d wait", all.free, len(all.waiting))
	}
	all.leave(first)
	<-second.turn
}

func TestATurnIsWaitedForUntilTheContextEnds(t *testing.T) {
	all := newTurns(1, 1, make(chan struct{}))
	done, err := all.take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.take(ctx, "b"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	done()
	if all.free != 1 || len(all.waiting) != 0 || len(all.going) != 0 {
		t.Errorf("left: %d free, %d wait, under way %v", all.free, len(all.waiting), all.going)
	}
}

func TestNoTurnIsGivenAtTheEnd(t *testing.T) {
	ending := make(chan struct{})
	all := newTurns(1, 1, ending)
	done, err := all.take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	close(ending)
	for range 2 { // also once one is free
		if _, err := all.take(t.Context(), "b"); !errs.HasCode(err, "shutting_down") {
			t.Errorf("got %v", err)
		}
		if done != nil {
			done()
			done = nil
		}
	}
	if all.free != 1 {
		t.Errorf("%d are free", all.free)
	}
}
