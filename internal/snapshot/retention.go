package snapshot

import (
	"context"
	"errors"
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

// makeRoom removes automatic snapshots, the oldest first, until the limits
// leave room for one more of so many bytes.
func (s *Service) makeRoom(ctx context.Context, draft Snapshot, bytes int64) error {
	if err := s.Prune(ctx); err != nil {
		return err
	}
	if err := s.makeRoomOfVM(ctx, draft); err != nil {
		return err
	}
	return s.makeRoomOnDisk(ctx, bytes)
}

func (s *Service) makeRoomOfVM(ctx context.Context, draft Snapshot) error {
	of, err := s.store.Snapshots(ctx, "", Filter{VMID: draft.VMID})
	if err != nil {
		return err
	}
	excess := len(of) + 1 - s.limits.PerVM
	for _, one := range s.oldestFirst(of) {
		if excess <= 0 {
			return nil
		}
		if err := s.prune(ctx, one, "the VM has as many as it may"); err != nil {
			return err
		}
		excess--
	}
	if excess > 0 {
		return errs.New(errs.Conflict, "snapshot_limit", "VM %s has %d snapshots already, as many as it may have", draft.VMID, len(of)).
			WithHint("delete one, or raise HATCH_MAX_SNAPSHOTS_PER_VM")
	}
	return nil
}

func (s *Service) makeRoomOnDisk(ctx context.Context, bytes int64) error {
	if s.limits.DiskMiB == 0 {
		return nil
	}
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return err
	}
	excess := bytes - s.limits.DiskMiB<<20
	for _, one := range all {
		excess += one.Bytes
	}
	for _, one := range s.oldestFirst(all) {
		if excess <= 0 {
			return nil
		}
		if err := s.prune(ctx, one, "snapshots take as much of the disk as they may"); err != nil {
			return err
		}
		excess -= one.Bytes
	}
	if excess > 0 {
		return errs.New(errs.Exhausted, "snapshot_disk_limit",
			"a snapshot of about %d MiB does not fit: snapshots may take %d MiB of the disk in all, and those there are take too much", bytes>>20, s.limits.DiskMiB).
			WithHint("delete some, or raise HATCH_SNAPSHOT_DISK_MIB")
	}
	return nil
}
