package snapshot

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/quota"
)

// pruneInterval is how often snapshots that have become too old are removed.
const pruneInterval = time.Minute

// Run removes automatic snapshots once they are older than the limit, until ctx
// is done.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(pruneInterval)
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
			s.log.Warn("cannot remove old snapshots", logkey.Error, err)
		}
	}
}

// Prune removes automatic snapshots that are older than the limit.
func (s *Service) Prune(ctx context.Context) error {
	if s.limits.MaxAge == 0 {
		return nil
	}
	all, err := s.store.HostSnapshots(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, snap := range s.evictable(all) {
		if snap.Kind == Automatic && time.Since(snap.CreatedAt) > s.limits.MaxAge {
			_, err := s.evict(ctx, snap, "it is older than the limit")
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// evict removes a snapshot unless it has come into use.
func (s *Service) evict(ctx context.Context, snap Snapshot, why string) (gone bool, err error) {
	release, ok := s.pinAlone(snap.ID)
	if !ok {
		return false, nil
	}
	defer release()
	s.log.Info("evicting a snapshot", logkey.Snapshot, snap.ID, "kind", snap.Kind, logkey.VM, snap.VMID, logkey.Reason, why)
	if err := s.remove(ctx, snap.ID); err != nil {
		return false, err
	}
	return true, nil
}

// bound is a limit on all snapshots together.
type bound struct {
	weigh   func(Snapshot) int64 // 0: it does not count
	limit   int64
	why     string // reason of an eviction
	refusal error  // when no more can be evicted
}

func (s *Service) bounds(draft Snapshot) []bound {
	ofVM := bound{
		weigh: func(snap Snapshot) int64 {
			if snap.VMID == draft.VMID {
				return 1
			}
			return 0
		},
		limit: int64(s.limits.PerVM),
		why:   "the VM has reached its limit",
		refusal: errs.New(errs.Conflict, "snapshot_limit",
			"VM %s may have %d snapshots, and none of those it has can be evicted", draft.VMID, s.limits.PerVM).
			WithHint("delete one, or raise HATCH_MAX_SNAPSHOTS_PER_VM"),
	}
	if s.limits.DiskMiB == 0 {
		return []bound{ofVM}
	}
	return []bound{ofVM, {
		weigh: func(snap Snapshot) int64 { return snap.Bytes },
		limit: s.limits.DiskMiB << 20,
		why:   "snapshots have reached their limit on disk",
		refusal: errs.New(errs.Exhausted, "snapshot_disk_limit",
			"a snapshot of about %d MiB does not fit: all snapshots may take %d MiB of the disk, and not enough of them can be evicted", draft.Bytes>>20, s.limits.DiskMiB).
			WithHint("delete some, or raise HATCH_SNAPSHOT_DISK_MIB"),
	}}
}

// evictAttempts is how often evictFor plans again after a snapshot that it chose
// has come into use.
const evictAttempts = 4

// evictFor evicts snapshots until the remaining ones and the draft, which is
// stored already, keep the bounds. When that is impossible it evicts none.
func (s *Service) evictFor(ctx context.Context, draft Snapshot) error {
	if err := s.Prune(ctx); err != nil {
		return err
	}
	var refusal error
	for range evictAttempts {
		victims, err := s.victims(ctx, draft)
		if err != nil {
			return err
		}
		if refusal, err = s.evictAll(ctx, victims); refusal == nil || err != nil {
			return err
		}
	}
	return refusal
}

// insertInPlace inserts a draft that exceeds its owner's quota, once the owner's oldest
// automatic snapshots are evicted that take as much. If they take less room than is missing, it
// evicts none for it, and returns the refusal.
func (s *Service) insertInPlace(ctx context.Context, draft Snapshot, refusal error) (Snapshot, error) {
	if draft.Kind == Warm {
		return draft, refusal
	}
	all, err := s.store.HostSnapshots(ctx)
	if err != nil {
		return draft, err
	}
	var old []Snapshot
	missing := max(draft.Bytes, 1)
	for _, snap := range s.evictable(all) { // the oldest first
		if missing > 0 && snap.Kind == Automatic && snap.OwnerID == draft.OwnerID {
			old, missing = append(old, snap), missing-max(snap.Bytes, 1)
		}
	}
	if len(old) == 0 {
		return draft, refusal
	}
	for _, snap := range old {
		if e, ok := errs.As(refusal); ok && e.Field == string(quota.SnapshotMiB) && missing > 0 {
			return draft, refusal // in vain
		}
		if _, err := s.evict(ctx, snap, "its owner's quota is used up"); err != nil {
			return draft, err
		}
		stored, err := s.store.InsertSnapshot(ctx, draft)
		if !errs.HasCode(err, quota.Code) {
			return stored, err
		}
		refusal = err
	}
	return draft, refusal
}

// victim is a snapshot to evict for a bound.
type victim struct {
	Snapshot
	bound bound
}

// evictAll stops at a snapshot that has come into use, and returns the refusal of
// its bound.
func (s *Service) evictAll(ctx context.Context, all []victim) (refusal, err error) {
	for _, snap := range all {
		gone, err := s.evict(ctx, snap.Snapshot, snap.bound.why)
		if err != nil {
			return nil, err
		}
		if !gone {
			return snap.bound.refusal, nil
		}
	}
	return nil, nil
}

// victims returns what must be evicted for the draft, in order.
func (s *Service) victims(ctx context.Context, draft Snapshot) (victims []victim, err error) {
	all, err := s.store.HostSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	candidates := s.candidates(all, draft)
	chosen := map[string]bool{}
	for _, b := range s.bounds(draft) {
		excess := -b.limit
		for _, snap := range all {
			if !chosen[snap.ID] {
				excess += b.weigh(snap)
			}
		}
		for _, snap := range candidates {
			if excess > 0 && !chosen[snap.ID] && b.weigh(snap) > 0 {
				chosen[snap.ID] = true
				victims = append(victims, victim{snap, b})
				excess -= b.weigh(snap)
			}
		}
		if excess > 0 {
			return nil, b.refusal
		}
	}
	return victims, nil
}

// candidates returns the snapshots that may be evicted for the draft, in order:
// those of the warm pool, then automatic ones of the same owner. No owner's
// snapshot is evicted for another owner, or for the warm pool.
func (s *Service) candidates(all []Snapshot, draft Snapshot) []Snapshot {
	var warm, owners []Snapshot
	for _, snap := range s.evictable(all) {
		switch {
		case snap.Kind == Warm:
			warm = append(warm, snap)
		case snap.OwnerID == draft.OwnerID && draft.Kind != Warm:
			owners = append(owners, snap)
		}
	}
	return append(warm, owners...)
}

// Yield evicts one snapshot of the warm pool to free disk space, and reports
// whether it did. If all that can be evicted free less than missing bytes,
// it evicts none; missing = 0 means unknown.
func (s *Service) Yield(ctx context.Context, missing int64) (yielded bool, err error) {
	all, err := s.store.HostSnapshots(ctx)
	if err != nil {
		return false, err
	}
	var free []Snapshot
	for _, snap := range s.evictable(all) {
		if snap.Kind == Warm {
			free = append(free, snap)
			missing -= snap.Bytes
		}
	}
	if missing > 0 {
		return false, nil
	}
	var failures []error
	for _, snap := range free {
		gone, err := s.evict(ctx, snap, "the host's disk is full")
		if gone {
			s.files.Flush()
			return true, nil
		}
		if err != nil { // another one may be evictable
			s.log.Error("cannot evict a warm snapshot", logkey.Snapshot, snap.ID, logkey.Error, err)
			failures = append(failures, err)
		}
	}
	return false, errors.Join(failures...)
}
