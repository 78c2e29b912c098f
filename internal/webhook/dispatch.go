package webhook

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Limits and timings of the dispatcher.
const (
	maxInFlight     = 16  // concurrent attempts of all webhooks
	maxInFlightEach = 4   // concurrent attempts of one webhook
	maxPending      = 500 // pending deliveries of one webhook; at the limit its cursor stays where it is
	eventBatch      = 100 // events read from the log at a time
	attemptTimeout  = 10 * time.Second
	roundInterval   = 50 * time.Millisecond // at least, between two rounds, so that few rounds handle a burst of events
	errorBackoff    = time.Second           // after a database error
	maxRetryAfter   = 24 * time.Hour
)

// retryBackoff lists how long to wait after each failed attempt. A random jitter of
// up to a fifth is added, so that retries do not all come at once.
var retryBackoff = []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour,
}

const gone = 410 // the HTTP status that disables a webhook

// run does rounds until ctx is done, then waits for the attempts in flight.
func (s *Service) run(ctx context.Context) {
	defer close(s.stopped)
	defer s.attempts.Wait()
	s.attempts.Go(func() { s.pruneLoop(ctx) })
	for turn := 0; ; turn++ {
		added := s.Store.EventAdded()
		more, next, err := s.round(ctx, turn)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Log.Warn("cannot look for deliveries that are due", logkey.Error, err)
			more, next = false, time.Now().Add(errorBackoff)
		}
		if !more && !s.await(ctx, added, next) || !backoff.Pause(ctx, roundInterval) {
			return
		}
	}
}

// await waits until an event is added, the dispatcher is woken or next has come.
// It returns false if ctx is done.
func (s *Service) await(ctx context.Context, added <-chan struct{}, next time.Time) bool {
	var timer <-chan time.Time
	if !next.IsZero() {
		timer = time.After(time.Until(next))
	}
	select {
	case <-added:
	case <-s.kick:
	case <-timer:
	case <-ctx.Done():
		return false
	}
	return true
}

// round stores deliveries for new events and starts the attempts that are due.
// more reports whether the log has further events; next is when the next attempt
// is due, zero if none is.
func (s *Service) round(ctx context.Context, turn int) (more bool, next time.Time, err error) {
	hooks, err := s.Store.Subscriptions(ctx)
	if err != nil || len(hooks) == 0 {
		return false, time.Time{}, err
	}
	more, err = s.enqueue(ctx, hooks)
	if err != nil {
		return false, time.Time{}, err
	}
	for i := range hooks {
		w := hooks[(turn+i)%len(hooks)].Webhook // rotate, so that every webhook comes first in some rounds
		due, err := s.startDue(ctx, w)
		if err != nil {
			return more, time.Time{}, err
		}
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return more, next, nil
}

// enqueue stores deliveries for the next events of the log.
func (s *Service) enqueue(ctx context.Context, hooks []Subscription) (more bool, err error) {
	hooks = withCapacity(hooks)
	if len(hooks) == 0 {
		return false, nil
	}
	from := hooks[0].Cursor
	for _, w := range hooks {
		from = min(from, w.Cursor)
	}
	events, through, err := s.Store.Events(ctx, event.Filter{Scope: access.Everyone, After: from, Limit: eventBatch})
	if err != nil {
		return false, err
	}
	var moves []Move
	for _, w := range hooks {
		if w.Cursor >= through {
			continue
		}
		deliveries, err := s.deliveries(w.Webhook, events)
		if err != nil {
			return false, err
		}
		moves = append(moves, Move{WebhookID: w.ID, From: w.Cursor, Through: through, Deliveries: deliveries})
	}
	if len(moves) == 0 {
		return false, nil
	}
	return len(events) == eventBatch, s.Store.Enqueue(ctx, moves)
}

// withCapacity returns the webhooks with fewer than maxPending deliveries.
func withCapacity(hooks []Subscription) []Subscription {
	var below []Subscription
	for _, w := range hooks {
		if w.Pending < maxPending {
			below = append(below, w)
		}
	}
	return below
}

func (s *Service) deliveries(w Webhook, events []event.Event) ([]Delivery, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	var list []Delivery
	for _, e := range events {
		if !w.wants(e) {
			continue
		}
		d, err := s.delivery(w, e, now)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// startDue starts the due attempts of one webhook, within the limits on
// concurrent attempts, and returns when its next attempt is due.
func (s *Service) startDue(ctx context.Context, w Webhook) (next time.Time, err error) {
	// The list begins with the deliveries that are in flight.
	pending, err := s.Store.Due(ctx, w.ID, 2*maxInFlightEach)
	if err != nil {
		return time.Time{}, err
	}
	for _, d := range pending {
		if d.NextTryAt.After(time.Now()) {
			return *d.NextTryAt, nil
		}
		s.start(ctx, w, d)
	}
	return time.Time{}, nil
}

// start begins an attempt, unless the delivery is in flight or a limit on
// concurrent attempts is reached. In that case the end of another attempt starts
// the next round.
func (s *Service) start(ctx context.Context, w Webhook, d Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := 0
	for _, webhook := range s.inFlight {
		if webhook == w.ID {
			each++
		}
	}
	if _, inFlight := s.inFlight[d.ID]; inFlight || each >= maxInFlightEach || len(s.inFlight) >= maxInFlight {
		return
	}
	s.inFlight[d.ID] = w.ID
	s.attempts.Go(func() {
		s.try(ctx, w, d)
		s.mu.Lock()
		delete(s.inFlight, d.ID)
		s.mu.Unlock()
		s.wake()
	})
}

// try makes one attempt and stores its outcome. If ctx ends during the attempt,
// nothing is stored and the attempt is repeated after a restart.
func (s *Service) try(ctx context.Context, w Webhook, d Delivery) {
	m := Message{URL: w.URL, ID: d.EventID, Timestamp: time.Now(), Body: d.Body}
	err := m.Sign(w.Secret)
	var answer Answer
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, attemptTimeout)
		answer, err = s.Sender.Send(bounded, m)
		cancel()
	}
	if ctx.Err() != nil {
		return
	}
	o := Outcome{Was: d, Now: d, URL: w.URL}
	o.Now.tried(answer, err, time.Now().UTC().Truncate(time.Microsecond))
	switch {
	case answer.StatusCode == gone:
		o.Disable = statusError(gone)
		o.Events = append(o.Events, disabledEvent(w, o.Disable))
	case o.Now.State == Failed:
		o.Events = append(o.Events, failedEvent(w, o.Now))
	}
	s.recordOutcome(ctx, o)
}

// recordOutcome stores the outcome of an attempt. It retries for as long as the
// database fails; until then the delivery counts as in flight.
func (s *Service) recordOutcome(ctx context.Context, o Outcome) {
	for {
		stored, err := s.Store.RecordOutcome(ctx, o)
		if stored {
			for _, e := range o.Events {
				s.Log.Warn(e.Message, "webhook", o.Now.WebhookID, logkey.Delivery, o.Now.ID)
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		s.Log.Error("cannot store the outcome of a delivery", logkey.Delivery, o.Now.ID, logkey.Error, err)
		if !backoff.Pause(ctx, errorBackoff) {
			return
		}
	}
}

// tried updates the delivery after an attempt that ended now.
func (d *Delivery) tried(a Answer, err error, now time.Time) {
	d.Attempts++
	d.TriedAt, d.NextTryAt = &now, nil
	d.StatusCode, d.Error = a.StatusCode, ""
	switch {
	case err != nil:
		d.Error = event.Brief(err.Error())
	case a.StatusCode >= 200 && a.StatusCode <= 299:
		d.State = Delivered
		return
	default:
		d.Error = statusError(a.StatusCode)
	}
	if d.Attempts > len(retryBackoff) || a.StatusCode == gone {
		d.State = Failed
		return
	}
	next := now.Add(max(jittered(retryBackoff[d.Attempts-1]), min(a.RetryAfter, maxRetryAfter)))
	d.NextTryAt = &next
}

func jittered(d time.Duration) time.Duration {
	return d + rand.N(d/5)
}
