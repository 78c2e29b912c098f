package snapshot

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// pruneEvery is how often snapshots that have become too old are looked for.
const pruneEvery = time.Minute

// Run removes automatic snapshots once they are older than the limit, until ctx
// is done.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	s.pruneAt(ctx, tick.C)
}

func (s *Service) pruneAt(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
		if err := s.Prune(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot remove old snapshots", "err", err)
		}
	}
}

// Prune removes automatic snapshots that are older than the limit.
func (s *Service) Prune(ctx context.Context) error {
	if s.limits.MaxAge == 0 {
		return nil
	}
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return err
	}
	var faults []error
	for _, one := range s.oldestFirst(all) {
		if one.Kind == Automatic && time.Since(one.CreatedAt) > s.limits.MaxAge {
			_, err := s.prune(ctx, one, "it is older than the limit")
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// prune removes a snapshot unless somebody has come to use it.
func (s *Service) prune(ctx context.Context, one Snapshot, why string) (gone bool, err error) {
	release, ok := s.seize(one.ID)
	if !ok {
		return false, nil
	}
	defer release()
	s.log.Info("removing a snapshot", "snapshot", one.ID, "kind", one.Kind, "vm", one.VMID, "why", why)
	if err := s.remove(ctx, one.ID); err != nil {
		return false, err
	}
	return true, nil
}

// bound is what snapshots keep to together.
type bound struct {
	weigh   func(Snapshot) int64 // 0: it does not count
	most    int64
	why     string // of those that are removed for it
	refusal error  // when no more can be removed
}

func (s *Service) bounds(draft Snapshot) []bound {
	ofVM := bound{
		weigh: func(one Snapshot) int64 {
			if one.VMID == draft.VMID {
				return 1
			}
			return 0
		},
		most: int64(s.limits.PerVM),
		why:  "the VM has as many as it may",
		refusal: errs.New(errs.Conflict, "snapshot_limit",
			"VM %s may have %d snapshots, and those it has make no room for another", draft.VMID, s.limits.PerVM).
			WithHint("delete one, or raise HATCH_MAX_SNAPSHOTS_PER_VM"),
	}
	if s.limits.DiskMiB == 0 {
		return []bound{ofVM}
	}
	return []bound{ofVM, {
		weigh: func(one Snapshot) int64 { return one.Bytes },
		most:  s.limits.DiskMiB << 20,
		why:   "snapshots take as much of the disk as they may",
		refusal: errs.New(errs.Exhausted, "snapshot_disk_limit",
			"a snapshot of about %d MiB does not fit: snapshots may take %d MiB of the disk in all, and those there are take too much", draft.Bytes>>20, s.limits.DiskMiB).
			WithHint("delete some, or raise HATCH_SNAPSHOT_DISK_MIB"),
	}}
}

// makeRoomTries is how often makeRoom plans anew when somebody has come to use
// what was to go.
const makeRoomTries = 4

// makeRoom removes snapshots until those that are left and the draft, which is
// stored already, keep the bounds. When that cannot be, none is removed.
func (s *Service) makeRoom(ctx context.Context, draft Snapshot) error {
	if err := s.Prune(ctx); err != nil {
		return err
	}
	var refusal error
	for range makeRoomTries {
		going, err := s.leaving(ctx, draft)
		if err != nil {
			return err
		}
		if refusal, err = s.pruneAll(ctx, going); refusal == nil || err != nil {
			return err
		}
	}
	return refusal
}

// leaver is a snapshot that is to go for a bound.
type leaver struct {
	Snapshot
	bound bound
}

// pruneAll stops at one that somebody has come to use, and returns the refusal
// of its bound.
func (s *Service) pruneAll(ctx context.Context, all []leaver) (refusal, err error) {
	for _, one := range all {
		gone, err := s.prune(ctx, one.Snapshot, one.bound.why)
		if err != nil {
			return nil, err
		}
		if !gone {
			return one.bound.refusal, nil
		}
	}
	return nil, nil
}

// leaving returns what must go for the draft, the first to go first.
func (s *Service) leaving(ctx context.Context, draft Snapshot) (leaving []leaver, err error) {
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return nil, err
	}
	yielding := s.yielding(all, draft)
	going := map[string]bool{}
	for _, b := range s.bounds(draft) {
		excess := -b.most
		for _, one := range all {
			if !going[one.ID] {
				excess += b.weigh(one)
			}
		}
		for _, one := range yielding {
			if excess > 0 && !going[one.ID] && b.weigh(one) > 0 {
				going[one.ID] = true
				leaving = append(leaving, leaver{one, b})
				excess -= b.weigh(one)
			}
		}
		if excess > 0 {
			return nil, b.refusal
		}
	}
	return leaving, nil
}

// yielding returns the snapshots that may go for the draft, the first to go
// first: hatchd's own, which only save time, then automatic ones of the same
// owner. Nothing that an owner keeps goes for another, or for hatchd itself.
func (s *Service) yielding(all []Snapshot, draft Snapshot) []Snapshot {
	var warm, owners []Snapshot
	for _, one := range s.oldestFirst(all) {
		switch {
		case one.Kind == Warm:
			warm = append(warm, one)
		case one.OwnerID == draft.OwnerID && draft.Kind != Warm:
			owners = append(owners, one)
		}
	}
	return append(warm, owners...)
}

// Yield removes one of the guests that hatchd keeps booted, so that its disk can
// have another use, and reports whether it did: none may be left that is free.
// When all that are free together are smaller than what is missing, none is
// removed; 0 means that nobody knows how much that is.
func (s *Service) Yield(ctx context.Context, missing int64) (yielded bool, err error) {
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return false, err
	}
	var free []Snapshot
	for _, one := range s.oldestFirst(all) {
		if one.Kind == Warm {
			free = append(free, one)
			missing -= one.Bytes
		}
	}
	if missing > 0 {
		return false, nil
	}
	var faults []error
	for _, one := range free {
		gone, err := s.prune(ctx, one, "the host's disk is full")
		if gone {
			s.files.Flush()
			return true, nil
		}
		if err != nil { // another one may go
			s.log.Error("cannot remove a booted guest", "snapshot", one.ID, "err", err)
			faults = append(faults, err)
		}
	}
	return false, errors.Join(faults...)
}
