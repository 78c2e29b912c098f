// Package backoff is the wait before the next attempt, which doubles from one
// attempt to the next up to a limit.
//
// It does not retry: callers decide what to try again, and often have their own events
// to wait for; [Pause] is for those that have none. There is no jitter: each of our
// retries has a peer of its own. Start at [New].
package backoff

import (
	"context"
	"time"
)

// Pause waits, and reports whether ctx is still alive.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Backoff is for one goroutine.
type Backoff struct {
	first, limit, next time.Duration
}

// New returns a Backoff whose waits are first, 2·first, 4·first … and at most
// limit. Both must be positive.
func New(first, limit time.Duration) *Backoff {
	return &Backoff{first: first, limit: limit, next: first}
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	wait := min(b.next, b.limit)
	b.next = min(2*wait, b.limit)
	return wait
}

// Reset makes the next wait the first one again, after an attempt that succeeded.
func (b *Backoff) Reset() { b.next = b.first }
