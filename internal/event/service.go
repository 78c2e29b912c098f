package event

import (
	"context"
	"log/slog"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Limits say how much of the log is kept.
type Limits struct {
	Keep  time.Duration // how long
	PerVM int           // events of one VM
	Total int
}

// beat is how often a follower hears from a log to which nothing is added.
const beat = 15 * time.Second

// maxFollowers bounds who follows the log at once: each reads it by itself.
const maxFollowers = 256

// Service reads the log and keeps it small. Followers keep nothing but their
// place: they read from the store when something was added, so a slow one
// costs no memory and misses nothing.
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

// Close ends the pruning.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

// Page returns the first events that f lets through, oldest first, and the Seq
// after which the next page begins, 0 when this is the last.
func (s *Service) Page(ctx context.Context, f Filter) (page []Event, next int64, err error) {
	page, _, err = s.store.Events(ctx, f)
	if err == nil && len(page) == f.Limit {
		next = page[len(page)-1].Seq
	}
	return page, next, err
}

// FromNow in Filter.After lets Follow begin with what comes.
const FromNow = -1

// Follow hands events to send as they come, in the log's order and without
// gaps, until ctx is done or send fails; through says up to which Seq it now
// has all. At first, and from time to time when nothing comes, it gets no
// events. f.Limit bounds how many it gets at once.
//
// Errors: errs.Invalid with code invalid_after when the log is not that long;
// errs.TooMany.
func (s *Service) Follow(ctx context.Context, f Filter, send func(events []Event, through int64) error) error {
	select {
	case s.followers <- struct{}{}:
		defer func() { <-s.followers }()
	default:
		return errs.New(errs.TooMany, "too_many_followers", "cannot follow the log: %d callers do so already", maxFollowers).
			WithHint("end some of them, or ask for pages instead")
	}
	last, err := s.store.LastEvent(ctx)
	if err != nil {
		return err
	}
	if f.After > last {
		return errs.InvalidField("after", "%d is beyond the end of the log, which is %d", f.After, last).
			WithHint("leave it out to begin with what comes, or give 0 for all that is kept")
	}
	if f.After == FromNow {
		f.After = last
	}
	if err := send(nil, f.After); err != nil { // the place is taken: nothing from here on is missed
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
