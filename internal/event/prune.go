package event

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

// Timings of pruning: often enough that the log stays close to its limits, and in
// batches with pauses in between, so that other writers get their turn.
const (
	pruneEvery = time.Minute
	pruneBatch = 500 // events in one transaction
	prunePause = 50 * time.Millisecond
)

// guestShare limits the events that a guest causes to one in so many of its VM's
// events, so that the guest cannot displace those that users caused.
const guestShare = 2

func (s *Service) pruneLoop(ctx context.Context) {
	defer close(s.stopped)
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	var checked int64 // only VMs with later events are pruned
	for {
		through, err := s.prune(ctx, checked)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot prune the event log", logkey.Error, err)
		}
		checked = through
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// prune removes events that are too old or over a limit, and returns the Seq up to
// which VMs have been checked.
func (s *Service) prune(ctx context.Context, checked int64) (through int64, err error) {
	before := time.Now().Add(-s.limits.Keep)
	if err := s.repeat(ctx, func() (int, error) { return s.store.PruneOldEvents(ctx, before, pruneBatch) }); err != nil {
		return checked, err
	}
	vms, through, err := s.store.VMsWithEvents(ctx, checked)
	if err != nil {
		return checked, err
	}
	for _, id := range vms {
		if err := s.pruneVM(ctx, id); err != nil {
			return checked, err
		}
	}
	return through, s.repeat(ctx, func() (int, error) { return s.store.PruneEventsOver(ctx, s.limits.Total, pruneBatch) })
}

func (s *Service) pruneVM(ctx context.Context, id string) error {
	err := s.repeat(ctx, func() (int, error) {
		return s.store.PruneGuestEvents(ctx, id, s.limits.PerVM/guestShare, pruneBatch)
	})
	if err != nil {
		return err
	}
	return s.repeat(ctx, func() (int, error) { return s.store.PruneVMEvents(ctx, id, s.limits.PerVM, pruneBatch) })
}

// repeat removes batches, with pauses in between, until one is not full.
func (s *Service) repeat(ctx context.Context, remove func() (int, error)) error {
	for {
		removed, err := remove()
		if err != nil || removed < pruneBatch {
			return err
		}
		select {
		case <-time.After(prunePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
