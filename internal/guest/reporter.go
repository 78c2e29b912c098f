package guest

import (
	"context"
	"errors"
	"reflect"
	"time"

	"golang.org/x/time/rate"

	"github.com/hatchvm/hatch/internal/vm"
)

// Rate limits of one guest's reports, across sessions. Each report may cause writes to
// the database, which a hostile agent must neither overload nor fill.
const (
	reportInterval = 50 * time.Millisecond // between any two reports
	reportBurst    = 100
	reportRefill   = 2 * time.Second // between reports beyond the burst
)

// reporter passes on the reports of one guest that differ from the one before. Only one
// goroutine may use it.
type reporter struct {
	observe  vm.ObserveReport
	interval *rate.Limiter
	burst    *rate.Limiter

	sent bool
	last *vm.GuestReport
}

func newReporter(observe vm.ObserveReport) *reporter {
	return &reporter{
		observe:  observe,
		interval: rate.NewLimiter(rate.Every(reportInterval), 1),
		burst:    rate.NewLimiter(rate.Every(reportRefill), reportBurst),
	}
}

var errLost = errors.New("the session is lost")

// send passes on a report, nil for the loss of a session, as soon as the limits allow it,
// unless it equals the last one. It drops a report whose session is lost during the
// wait: reports of a lost session must not delay the next one.
func (r *reporter) send(ctx context.Context, lost <-chan struct{}, report *vm.GuestReport) error {
	if r.sent && reflect.DeepEqual(report, r.last) {
		return nil
	}
	if wait := max(r.interval.Reserve().Delay(), r.burst.Reserve().Delay()); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-lost:
			return errLost
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.sent, r.last = true, report
	r.observe(report)
	return nil
}
