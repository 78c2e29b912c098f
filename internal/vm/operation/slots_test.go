package operation

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestSlotsAreFair(t *testing.T) {
	slots := NewSlots(2, 2, make(chan struct{}))
	var first []func()
	for range 2 {
		done, err := slots.Acquire(t.Context(), "busy")
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, done)
	}
	gone := make(chan string)
	var waiters []*waiter
	for _, owner := range []string{"busy", "busy", "late"} {
		w := slots.enqueue(owner)
		waiters = append(waiters, w)
		go func() { <-w.granted; gone <- owner }()
	}
	var order []string
	for _, done := range first {
		done()
		order = append(order, <-gone)
	}
	if want := []string{"late", "busy"}; !slices.Equal(order, want) {
		t.Errorf("went %v, want %v", order, want)
	}
	if slots.free != 0 || len(slots.waiting) != 1 {
		t.Errorf("%d are free, and %d wait", slots.free, len(slots.waiting))
	}
	slots.leave(waiters[0])
	if last := <-gone; last != "busy" {
		t.Errorf("the last was %s", last)
	}
}

func TestOneUserLeavesASlotToOthers(t *testing.T) {
	slots := NewSlots(2, 1, make(chan struct{}))
	first, second, other := slots.enqueue("busy"), slots.enqueue("busy"), slots.enqueue("other")
	<-first.granted
	<-other.granted
	if slots.free != 0 || !slices.Equal(slots.waiting, []*waiter{second}) {
		t.Errorf("%d are free, and %d wait", slots.free, len(slots.waiting))
	}
	slots.leave(other) // which is not for the second
	if slots.free != 1 || len(slots.waiting) != 1 {
		t.Errorf("%d are free, and %d wait", slots.free, len(slots.waiting))
	}
	slots.leave(first)
	<-second.granted
}

func TestAcquireWaitsUntilTheContextEnds(t *testing.T) {
	slots := NewSlots(1, 1, make(chan struct{}))
	done, err := slots.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := slots.Acquire(ctx, "b"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	done()
	if slots.free != 1 || len(slots.waiting) != 0 || len(slots.running) != 0 {
		t.Errorf("left: %d free, %d wait, running %v", slots.free, len(slots.waiting), slots.running)
	}
}

func TestNoSlotIsGrantedAfterClosing(t *testing.T) {
	closing := make(chan struct{})
	slots := NewSlots(1, 1, closing)
	done, err := slots.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	close(closing)
	for range 2 { // also once one is free
		if _, err := slots.Acquire(t.Context(), "b"); !errs.HasCode(err, "shutting_down") {
			t.Errorf("got %v", err)
		}
		if done != nil {
			done()
			done = nil
		}
	}
	if slots.free != 1 {
		t.Errorf("%d are free", slots.free)
	}
}
