package backoff_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
)

func waits(b *backoff.Backoff, n int) []time.Duration {
	var all []time.Duration
	for range n {
		all = append(all, b.Next())
	}
	return all
}

func TestWaitsDoubleUpToTheLimit(t *testing.T) {
	b := backoff.New(time.Second, 5*time.Second)
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}
	if got := waits(b, 5); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	b.Reset()
	if got := waits(b, 2); !slices.Equal(got, want[:2]) {
		t.Errorf("after a reset: got %v, want %v", got, want[:2])
	}
}

func TestNoWaitExceedsTheLimit(t *testing.T) {
	b := backoff.New(3*time.Second, 2*time.Second)
	if got := waits(b, 3); slices.Max(got) > 2*time.Second {
		t.Errorf("got %v", got)
	}
}
