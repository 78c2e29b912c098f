package event

import (
	"context"
	"time"
)

// How pruning goes: often enough that nothing grows far beyond its bound, and
// in bites that leave room for everybody else who writes.
const (
	pruneEvery = time.Minute
	pruneBatch = 500 // events in one transaction
	prunePause = 50 * time.Millisecond
)

// guestShare is the part of a VM's events that its guest may bring about, one
// in so many: it shall not push out what people have done.
const guestShare = 2

func (s *Service) pruneLoop(ctx context.Context) {
	defer close(s.stopped)
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	var checked int64 // VMs with later events only are looked at
	for {
		through, err := s.prune(ctx, checked)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot prune the log of events", "err", err)
		}
		checked = through
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// prune removes what is too old or too much, and returns how far the log has
// been checked.
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

// repeat removes batches until one is not full, with pauses.
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
