package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Bounds on what waits to be stored, and on storing it.
const (
	maxWaiting   = 8192 // records
	maxBatch     = 256  // records in one transaction
	storeTimeout = 10 * time.Second
	closeTimeout = 5 * time.Second // for all that waits
	firstRetry   = time.Second
	longRetry    = 30 * time.Second
)

// Limits bound the log.
type Limits struct {
	Keep  time.Duration
	Total int // records
}

// Service stores records in the background: [Service.Add] does not wait. While the
// database does not answer, records wait in memory; of those that do not fit, the number
// is recorded later.
type Service struct {
	store  Store
	limits Limits
	log    *slog.Logger

	stop    context.CancelFunc
	stopped chan struct{}
	added   chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []Record
	lost    int64 // since the last record of a gap
	failed  error // of the last attempt to store
	windows windows
	seq     int64 // the last one given
}

// Open makes a service and starts to store, until Close.
func Open(ctx context.Context, store Store, limits Limits, log *slog.Logger) (*Service, error) {
	last, err := store.LastAudit(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot read the audit log: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Service{
		store: store, limits: limits, log: log, stop: stop, stopped: make(chan struct{}), added: make(chan struct{}, 1),
		windows: newWindows(), seq: last,
	}
	go s.run(ctx)
	return s, nil
}

// Close stores what waits, unless the database does not answer, and waits for the
// background work to end. Records that are added later are lost.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

// Add adds a record. It does not wait, and cannot fail: see Check.
func (s *Service) Add(r Record) {
	s.mu.Lock()
	s.addLocked(r)
	s.mu.Unlock()
	s.nudge()
}

// AddBounded is Add for what clients without a key cause at will. Of the records that are
// alike but for their object, within a minute, those after the first few become one.
func (s *Service) AddBounded(r Record) {
	s.mu.Lock()
	if s.windows.admit(r) {
		s.addLocked(r)
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *Service) addLocked(r Record) {
	if len(s.waiting) >= maxWaiting {
		s.lost++
		return
	}
	r = r.cut()
	r.At, r.Count = time.Now().UTC().Truncate(time.Microsecond), max(1, r.Count)
	s.waiting = append(s.waiting, r)
}

func (s *Service) nudge() {
	select {
	case s.added <- struct{}{}:
	default:
	}
}

// Records returns the newest records that match.
func (s *Service) Records(ctx context.Context, f Filter) ([]Record, error) {
	return s.store.AuditRecords(ctx, f)
}

// Check returns why records cannot be stored, or nil.
func (s *Service) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Service) run(ctx context.Context) {
	defer close(s.stopped)
	var pruning sync.WaitGroup
	pruning.Go(func() { s.pruneLoop(ctx) })
	defer pruning.Wait()
	minute := time.NewTicker(window)
	defer minute.Stop()
	for retry := backoff.New(firstRetry, longRetry); ctx.Err() == nil; {
		select {
		case <-s.added:
		case <-minute.C:
			s.endWindows()
		case <-ctx.Done():
		}
		if ctx.Err() == nil && s.storeAll(ctx) != nil && backoff.Pause(ctx, retry.Next()) {
			s.nudge()
			continue
		}
		retry.Reset()
	}
	s.endWindows()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := s.storeAll(ending); err != nil {
		s.log.Error("audit records are lost", "records", len(s.waiting), logkey.Error, err)
	}
}

func (s *Service) endWindows() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.windows.end() {
		s.addLocked(r)
	}
}

// storeAll stores what waits.
func (s *Service) storeAll(ctx context.Context) error {
	for {
		batch := s.batch(ctx)
		if len(batch) == 0 {
			return nil
		}
		bounded, cancel := context.WithTimeout(ctx, storeTimeout)
		err := s.store.AppendAudit(bounded, batch)
		cancel()
		s.stored(len(batch), err)
		if err != nil {
			return err
		}
	}
}

// batch returns the records that are stored next, with numbers. They keep them, so that
// an attempt whose outcome is not known can be repeated.
func (s *Service) batch(ctx context.Context) []Record {
	s.mu.Lock()
	if len(s.waiting) == 0 && s.lost > 0 {
		lost := s.lost
		s.lost = 0
		s.addLocked(Record{Operation: Gap, Outcome: Failed, Count: lost})
	}
	next := s.waiting[:min(len(s.waiting), maxBatch)]
	for i := range next {
		if next[i].Seq == 0 {
			s.seq = max(s.seq+1, time.Now().UnixMicro())
			next[i].Seq = s.seq
		}
	}
	batch := slices.Clone(next)
	s.mu.Unlock()
	for i := range batch {
		if r := &batch[i]; r.OwnerID == "" && r.Noun == "vm" && r.UserID == "" {
			r.OwnerID, _ = s.store.OwnerOfVM(ctx, r.Object) // without one, only admins see the record
		}
	}
	return batch
}

// stored notes the outcome of an attempt, and logs when that changes.
func (s *Service) stored(n int, err error) {
	s.mu.Lock()
	before := s.failed
	s.failed = err
	if err == nil {
		s.waiting = slices.Clone(s.waiting[n:])
	}
	s.mu.Unlock()
	switch {
	case err != nil && before == nil && !errors.Is(err, context.Canceled):
		s.log.Error("cannot store audit records; they wait in memory", logkey.Error, err)
	case err == nil && before != nil:
		s.log.Info("audit records are stored again")
	}
}

// Timings of pruning, as of the event log.
const (
	pruneEvery = 10 * time.Minute
	pruneBatch = 500
	prunePause = 50 * time.Millisecond
)

func (s *Service) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := s.prune(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot prune the audit log", logkey.Error, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// prune removes records that are too old, or too many.
func (s *Service) prune(ctx context.Context) error {
	before := time.Now().Add(-s.limits.Keep)
	for _, remove := range []func() (int, error){
		func() (int, error) { return s.store.PruneOldAudit(ctx, before, pruneBatch) },
		func() (int, error) { return s.store.PruneAuditOver(ctx, s.limits.Total, pruneBatch) },
	} {
		for {
			removed, err := remove()
			if err != nil {
				return err
			}
			if removed < pruneBatch {
				break
			}
			if !backoff.Pause(ctx, prunePause) {
				return ctx.Err()
			}
		}
	}
	return nil
}
