package event

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Limits are the limits within which events are kept.
type Limits struct {
	Keep  time.Duration // how long an event is kept
	PerVM int           // events of one VM
	Total int
}

// beat is the interval of heartbeats to a follower while no events are added.
const beat = 15 * time.Second

// maxFollowers bounds the concurrent followers: each reads the log on its own.
const maxFollowers = 256

// Service reads and prunes the log. A follower keeps only its position and reads
// from the store when an event is added, so a slow follower costs no memory and
// misses no event.
type Service struct {
	store  Store
	limits Limits
	log    *slog.Logger
	beat   time.Duration

	followers chan struct{} // one token each

	stop    context.CancelFunc
	stopped chan struct{}
}

// New makes a service and starts to prune in the background, until Close.
func New(store Store, limits Limits, log *slog.Logger) *Service {
	s := newService(store, limits, log)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.pruneLoop(ctx)
	return s
}

func newService(store Store, limits Limits, log *slog.Logger) *Service {
	return &Service{
		store: store, limits: limits, log: log, beat: beat,
		followers: make(chan struct{}, maxFollowers), stopped: make(chan struct{}),
	}
}

// Close ends pruning and waits for it.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

// Page returns the first events that match f, oldest first, and the Seq after which
// the next page begins, 0 if this is the last. If events that a reader at f.After, or
// since f.Since, would have got were removed, the first is of type log.gap.
func (s *Service) Page(ctx context.Context, f Filter) (page []Event, next int64, err error) {
	gap, err := s.gap(ctx, f)
	f.Limit -= len(gap)
	if err != nil {
		return nil, 0, err
	}
	if f.Limit == 0 {
		return gap, gap[0].Seq, nil
	}
	page, _, err = s.store.Events(ctx, f)
	if err == nil && len(page) == f.Limit {
		next = page[len(page)-1].Seq
	}
	return append(gap, page...), next, err
}

// gap returns an event if a reader that begins at f.After, or since f.Since, misses
// events that were removed before all that are kept. One that wants all events that are
// kept misses none.
func (s *Service) gap(ctx context.Context, f Filter) ([]Event, error) {
	if f.After <= 0 && f.Since.IsZero() {
		return nil, nil
	}
	oldest, at, err := s.store.OldestEvent(ctx)
	after, through := max(f.After, 0), oldest-1
	if err != nil || through <= after || (!f.Since.IsZero() && !f.Since.Before(at)) {
		return nil, err
	}
	e := Of(LogGap, fmt.Sprintf("events up to %d have been removed, and some may have been among those that you ask for", through),
		map[string]int64{"after": after, "through": through})
	e.Seq, e.ID, e.At, e.Actor.Kind = through, fmt.Sprintf("%sgap%d", IDPrefix, through), time.Now(), Daemon
	return []Event{e}, nil
}

// FromNow as Filter.After makes Follow begin with the next event.
const FromNow = -1

// Follow calls send with events as they are added, in the log's order and without
// gaps other than those that a log.gap at the start tells of, until ctx is done or send fails. through is the Seq up to which send has
// received all events. At the start, and as a heartbeat, send is called without
// events. f.Limit bounds the events of one call.
//
// Errors: errs.Invalid with code invalid_after if f.After is beyond the end of the
// log; errs.TooMany.
func (s *Service) Follow(ctx context.Context, f Filter, send func(events []Event, through int64) error) error {
	select {
	case s.followers <- struct{}{}:
		defer func() { <-s.followers }()
	default:
		return errs.New(errs.TooMany, "too_many_followers", "cannot follow the log: %d callers already do", maxFollowers).
			WithHint("close some of their connections, or read pages instead")
	}
	last, err := s.store.LastEvent(ctx)
	if err != nil {
		return err
	}
	if f.After > last {
		return errs.InvalidField("after", "%d is beyond the last event, %d", f.After, last).
			WithHint("leave it out to begin with the next event, or use 0 for all events that are kept")
	}
	if f.After == FromNow {
		f.After = last
	}
	gap, err := s.gap(ctx, f)
	if err != nil {
		return err
	}
	if len(gap) > 0 {
		f.After = gap[0].Seq
	}
	if err := send(gap, f.After); err != nil { // the position is fixed: no event after it is missed
		return err
	}
	return s.follow(ctx, f, send)
}

func (s *Service) follow(ctx context.Context, f Filter, send func(events []Event, through int64) error) error {
	idle := time.NewTicker(s.beat)
	defer idle.Stop()
	for {
		added := s.store.EventAdded()
		events, through, err := s.store.Events(ctx, f)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			if err := send(events, through); err != nil {
				return err
			}
			idle.Reset(s.beat)
		}
		f.After = through
		if len(events) == f.Limit {
			continue // there may be more
		}
		select {
		case <-added:
		case <-idle.C:
			if err := send(nil, through); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
