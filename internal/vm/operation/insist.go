package operation

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

// The waits before a database that does not answer is asked again.
const (
	firstInsist = 50 * time.Millisecond
	limitInsist = 5 * time.Second
)

// Insist stores what an operation has come to: it calls store until the database
// answers, ctx is done, or the runner is closing. Else a row would say for ever what the
// VM was before. store may be called again after it has stored: whether it has is not
// known when the connection breaks.
func (r *Runner) Insist(ctx context.Context, store func() error) error {
	waits := backoff.New(firstInsist, limitInsist)
	for attempt := 1; ; attempt++ {
		err := store()
		if !errs.HasCode(err, errs.DatabaseUnavailable) {
			return err
		}
		wait := waits.Next()
		if attempt == 1 {
			r.log.Warn("the database does not answer; storing is tried again", logkey.Error, err, logkey.RetryIn, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-r.closing:
			timer.Stop()
			return err
		}
	}
}
