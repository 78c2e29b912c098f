package snapshot

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

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
		if time.Since(one.CreatedAt) > s.limits.MaxAge {
			faults = append(faults, s.prune(ctx, one, "it is older than the limit"))
		}
	}
	return errors.Join(faults...)
}

// prune removes an automatic snapshot unless somebody has come to use it.
func (s *Service) prune(ctx context.Context, one Snapshot, why string) error {
	release, ok := s.seize(one.ID)
	if !ok {
		return nil
	}
	defer release()
	s.log.Info("removing an automatic snapshot", "snapshot", one.ID, "vm", one.VMID, "why", why)
	return s.remove(ctx, one.ID)
}

// makeRoom removes automatic snapshots, the oldest first, until those that are
// left and the draft, which is stored already, keep the limits. When that cannot
// be, none is removed.
func (s *Service) makeRoom(ctx context.Context, draft Snapshot) error {
	if err := s.Prune(ctx); err != nil {
		return err
	}
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return err
	}
	free := s.oldestFirst(all)
	if draft.Kind == Warm { // it may save somebody time, and costs nobody what was kept
		free = slices.DeleteFunc(free, func(one Snapshot) bool { return one.Kind != Warm })
	}
	ofVM, free, err := s.roomOfVM(all, free, draft)
	if err != nil {
		return err
	}
	onDisk, err := s.roomOnDisk(all, free, ofVM, draft)
	if err != nil {
		return err
	}
	for _, one := range ofVM {
		if err := s.prune(ctx, one, "the VM has as many as it may"); err != nil {
			return err
		}
	}
	for _, one := range onDisk {
		if err := s.prune(ctx, one, "snapshots take as much of the disk as they may"); err != nil {
			return err
		}
	}
	return nil
}

// roomOfVM chooses which of the free ones have to go for the VM to keep its
// limit, and returns the others, too.
func (s *Service) roomOfVM(all, free []Snapshot, draft Snapshot) (going, staying []Snapshot, err error) {
	count := 0
	for _, one := range all {
		if one.VMID == draft.VMID {
			count++
		}
	}
	excess := count - s.limits.PerVM
	for _, one := range free {
		if excess > 0 && one.VMID == draft.VMID {
			going = append(going, one)
			excess--
		} else {
			staying = append(staying, one)
		}
	}
	if excess > 0 {
		return nil, nil, errs.New(errs.Conflict, "snapshot_limit", "VM %s has %d snapshots already, as many as it may have", draft.VMID, count-1).
			WithHint("delete one, or raise HATCH_MAX_SNAPSHOTS_PER_VM")
	}
	return going, staying, nil
}

// roomOnDisk chooses which of the free ones have to go, beside those that go
// anyway, for all together to keep their limit.
func (s *Service) roomOnDisk(all, free, anyway []Snapshot, draft Snapshot) (going []Snapshot, err error) {
	if s.limits.DiskMiB == 0 {
		return nil, nil
	}
	excess := bytesOf(all) - bytesOf(anyway) - s.limits.DiskMiB<<20
	for _, one := range free {
		if excess > 0 {
			going = append(going, one)
			excess -= one.Bytes
		}
	}
	if excess > 0 {
		return nil, errs.New(errs.Exhausted, "snapshot_disk_limit",
			"a snapshot of about %d MiB does not fit: snapshots may take %d MiB of the disk in all, and those there are take too much", draft.Bytes>>20, s.limits.DiskMiB).
			WithHint("delete some, or raise HATCH_SNAPSHOT_DISK_MIB")
	}
	return going, nil
}

func bytesOf(all []Snapshot) (sum int64) {
	for _, one := range all {
		sum += one.Bytes
	}
	return sum
}
