package client

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// backoff is the wait between two attempts. It doubles from min to max.
type backoff struct {
	min, max time.Duration
	next     time.Duration // 0 to begin with min

	giveUp time.Duration // after this long without the server; 0 for never
	alive  time.Time     // when the server was last heard
}

// isOver reports whether the server has been away for too long, or was never there.
func (b *backoff) isOver() bool {
	return b.giveUp > 0 && time.Since(b.alive) > b.giveUp
}

// maxRetryAfter bounds the wait that a server asks for.
const maxRetryAfter = 5 * time.Minute

// wait waits, at least as long as the server has asked for with the error of the last
// attempt, or returns the error of ctx.
func (b *backoff) wait(ctx context.Context, last error) error {
	b.next = min(max(b.next, b.min), b.max)
	wait := b.next
	if e, ok := errors.AsType[*Error](last); ok {
		wait = max(wait, min(e.RetryAfter, maxRetryAfter))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		b.next *= 2
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isFinal reports whether the server would refuse another attempt, too.
func isFinal(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch status := e.Status(); status {
	case http.StatusTooManyRequests, 0: // 0: an error inside a WebSocket
		return false
	default:
		return status < http.StatusInternalServerError || status == http.StatusNotImplemented
	}
}
