package webhook

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hatchvm/hatch/internal/event"
)

// Bounds on what goes on at once, and on what may wait.
const (
	atOnce        = 16  // attempts in all
	atOnceEach    = 4   // attempts of one webhook
	maxPending    = 500 // deliveries of one webhook; beyond it stays where it is in the log
	eventsAtOnce  = 100
	tryTimeout    = 10 * time.Second
	roundPause    = 50 * time.Millisecond // between two rounds, so that a burst of events takes few
	faultPause    = time.Second           // after a fault of the database
	maxRetryAfter = 24 * time.Hour
)

// delays are the pauses between attempts, to which up to a fifth is added by
// chance, so that not all come back at once.
var delays = []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour,
}

const gone = 410 // the status by which a receiver wants no more

// run does rounds until ctx is done, and waits for the attempts under way.
func (s *Service) run(ctx context.Context) {
	defer close(s.stopped)
	defer s.tries.Wait()
	s.tries.Go(func() { s.pruneLoop(ctx) })
	for turn := 0; ; turn++ {
		added := s.Store.EventAdded()
		more, next, err := s.round(ctx, turn)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Log.Warn("cannot look for webhooks to deliver", "err", err)
			more, next = false, time.Now().Add(faultPause)
		}
		if !more && !s.await(ctx, added, next) || !pause(ctx, roundPause) {
			return
		}
	}
}

// await returns when there may be something to do, and false when ctx is done.
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

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// round stores deliveries for new events and starts the attempts that are due.
// more says that there are more events, next when the next attempt is due.
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
		w := hooks[(turn+i)%len(hooks)].Webhook // each is first now and then
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
	hooks = withRoom(hooks)
	if len(hooks) == 0 {
		return false, nil
	}
	from := hooks[0].Cursor
	for _, w := range hooks {
		from = min(from, w.Cursor)
	}
	events, through, err := s.Store.Events(ctx, event.Filter{After: from, Limit: eventsAtOnce})
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
	return len(events) == eventsAtOnce, s.Store.Enqueue(ctx, moves)
}

// withRoom returns the webhooks that may have more deliveries.
func withRoom(hooks []Subscription) []Subscription {
	var room []Subscription
	for _, w := range hooks {
		if w.Pending < maxPending {
			room = append(room, w)
		}
	}
	return room
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

// startDue starts the attempts of one webhook that are due, as far as there is
// room, and returns when its next one is.
func (s *Service) startDue(ctx context.Context, w Webhook) (next time.Time, err error) {
	// Those under way are among them, and first.
	pending, err := s.Store.Due(ctx, w.ID, 2*atOnceEach)
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

// start begins an attempt, unless it is under way or there is no room: then the
// end of another one leads to the next round.
func (s *Service) start(ctx context.Context, w Webhook, d Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := 0
	for _, webhook := range s.flying {
		if webhook == w.ID {
			each++
		}
	}
	if _, flying := s.flying[d.ID]; flying || each >= atOnceEach || len(s.flying) >= atOnce {
		return
	}
	s.flying[d.ID] = w.ID
	s.tries.Go(func() {
		s.try(ctx, w, d)
		s.mu.Lock()
		delete(s.flying, d.ID)
		s.mu.Unlock()
		s.wake()
	})
}

// try makes one attempt and stores what came of it. When ctx ends meanwhile,
// nothing is stored: the attempt is made again.
func (s *Service) try(ctx context.Context, w Webhook, d Delivery) {
	m := Message{URL: w.URL, ID: d.EventID, Timestamp: time.Now(), Body: d.Body}
	err := m.Sign(w.Secret)
	var answer Answer
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, tryTimeout)
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
	s.settle(ctx, o)
}

// settle stores the outcome, however long the database is out of reach: until
// then the delivery counts as under way.
func (s *Service) settle(ctx context.Context, o Outcome) {
	for {
		stored, err := s.Store.Settle(ctx, o)
		if stored {
			for _, e := range o.Events {
				s.Log.Warn(e.Message, "webhook", o.Now.WebhookID, "delivery", o.Now.ID)
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		s.Log.Error("cannot store the outcome of a delivery", "delivery", o.Now.ID, "err", err)
		if !pause(ctx, faultPause) {
			return
		}
	}
}

// tried notes the outcome of an attempt that has just ended.
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
	if d.Attempts > len(delays) || a.StatusCode == gone {
		d.State = Failed
		return
	}
	next := now.Add(max(jittered(delays[d.Attempts-1]), min(a.RetryAfter, maxRetryAfter)))
	d.NextTryAt = &next
}

func jittered(d time.Duration) time.Duration {
	return d + rand.N(d/5)
}
