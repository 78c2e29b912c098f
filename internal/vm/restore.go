package vm

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Restore puts the VM back to a snapshot of it, the newest when none is named,
// whatever it does now, and returns once its guest goes on from there. What was
// in its memory and on its disk is lost.
//
// Errors, before anything is changed: errs.Conflict with code no_snapshot or
// snapshot_unusable; errs.Invalid with field snapshot_id when it is of another
// VM; errs.Exhausted, with code memory_exhausted for its memory. When the snapshot has taken its place
// and the guest cannot be woken, the VM sleeps.
func (s *Service) Restore(ctx context.Context, owner, id, snapshotID string) (VM, error) {
	return s.operate(ctx, owner, id, "restore", func(ctx context.Context, v VM) (VM, error) {
		one, release, err := s.snapshotOf(ctx, v, snapshotID)
		if err != nil {
			return VM{}, err
		}
		defer release()
		return s.restore(ctx, v, one)
	})
}

// snapshotOf returns a snapshot of the VM, held until release is called.
func (s *Service) snapshotOf(ctx context.Context, v VM, id string) (_ snapshot.Snapshot, release func(), err error) {
	if id == "" {
		latest, err := s.deps.Snapshots.Latest(ctx, v.OwnerID, v.ID)
		if err != nil {
			return snapshot.Snapshot{}, nil, err
		}
		id = latest.ID
	}
	one, release, err := s.holdSnapshot(ctx, v.OwnerID, id)
	if err != nil {
		return snapshot.Snapshot{}, nil, err
	}
	if one.VMID != v.ID {
		release()
		return snapshot.Snapshot{}, nil, errs.InvalidField("snapshot_id", "%s is a snapshot of another VM", one.ID).
			WithHint("POST /vms with this snapshot_id makes a new VM from it")
	}
	return one, release, nil
}

// holdSnapshot returns one that is named in a request, by its id or its name, and
// keeps it from being removed until release is called.
func (s *Service) holdSnapshot(ctx context.Context, owner, idOrName string) (_ snapshot.Snapshot, release func(), err error) {
	one, err := s.deps.Snapshots.Get(ctx, owner, idOrName)
	if err == nil {
		release = s.deps.Snapshots.Hold(one.ID)
		one, err = s.deps.Snapshots.Get(ctx, owner, one.ID) // it may have gone before it was held
	}
	switch {
	case errs.Is(err, errs.NotFound):
		err = errs.InvalidField("snapshot_id", "there is no snapshot %q", idOrName).
			WithHint("GET /snapshots lists them").WithCause(err)
	case err == nil && !one.Durable:
		err = errs.New(errs.Conflict, "snapshot_in_use", "snapshot %s is still being taken", one.ID).
			WithHint("try again in a moment")
	}
	if err != nil {
		if release != nil {
			release()
		}
		return snapshot.Snapshot{}, nil, err
	}
	return one, release, nil
}

// restore replaces what the VM is. Until the row says so nothing of it has
// changed; from then on it is what the snapshot holds, which moveIn puts in place.
func (s *Service) restore(ctx context.Context, v VM, one snapshot.Snapshot) (VM, error) {
	if err := s.Fits(one); err != nil { // before all of it is read
		return VM{}, err
	}
	if err := s.checkMemory(ctx, v); err != nil { // while there is something to keep
		return VM{}, err
	}
	if err := s.verify(ctx, one); err != nil {
		return VM{}, err
	}
	if _, err := s.holder(ctx, v); err != nil { // which moveIn ends
		return VM{}, err
	}
	if err := s.withRoom(ctx, v.OwnerID, func() error { return s.stage(ctx, v, one) }); err != nil {
		return VM{}, err
	}
	s.stopPersisting(v.ID)
	staged, err := s.recordStaged(ctx, v, one)
	if err != nil { // what is staged goes with the next one, or the next start of the daemon
		if v.Sleep != nil && !v.Sleep.Durable {
			s.persist(v.ID)
		}
		return VM{}, err
	}
	if v, err = s.moveIn(ctx, staged); err != nil {
		return VM{}, err
	}
	return s.ensureAwake(ctx, v)
}

// stage lays the snapshot out beside what the VM has.
func (s *Service) stage(ctx context.Context, v VM, one snapshot.Snapshot) error {
	return s.deps.Files.Stage(ctx, v.ID, func(disk, saved string) error {
		if err := s.deps.SnapshotFiles.CopyDisk(ctx, one.ID, disk); err != nil {
			return err
		}
		spec, err := s.standingSpec(ctx, v, disk)
		if err != nil {
			return err
		}
		if err := vmm.AdaptSaved(s.deps.SnapshotFiles.Dir(one.ID), saved, spec); err != nil {
			return misfit(one, err)
		}
		if err := s.deps.SnapshotFiles.LinkMemory(one.ID, saved); err != nil {
			return err
		}
		return misfit(one, s.deps.Drivers[v.Driver].Check(spec, saved))
	})
}

// misfit makes what is wrong with a machine that was saved the snapshot's fault:
// the VM that it is laid out for is not that machine, and may run.
func misfit(one snapshot.Snapshot, err error) error {
	if !errs.HasCode(err, "saved_unusable") {
		return err
	}
	return unfit(one, publicMessage(err)).WithCause(err)
}

func (s *Service) unstage(id string) {
	if err := s.deps.Files.Unstage(id); err != nil {
		s.deps.Log.Error("cannot remove what was laid out of a snapshot", "vm", id, "err", err)
	}
}

func (s *Service) recordStaged(ctx context.Context, v VM, one snapshot.Snapshot) (VM, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return s.update(ctx, v.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent = Snapshotted, "asleep as in snapshot "+one.ID, WantAsleep
		v.SnapshotID, v.Provisioned = one.ID, true // the machine stays in the record until moveIn has ended it
		v.Sleep = &Sleep{At: now, Durable: true, Bytes: one.Bytes, Staged: true}
		v.Conditions.Agent = v.Conditions.Agent.moved(False, "Asleep", "the VM sleeps", now)
	})
}

// moveIn puts what was staged for a VM in its place, if anything was, once the
// machine that it had has ended. It may be done again at whatever step it was cut
// short.
func (s *Service) moveIn(ctx context.Context, v VM) (VM, error) {
	if v.Sleep == nil || !v.Sleep.Staged {
		return v, nil
	}
	in, err := s.holder(ctx, v)
	if err != nil {
		return VM{}, err
	}
	if in != nil {
		if err := s.endHeld(ctx, v.ID, in); err != nil {
			return VM{}, err
		}
		s.detachLink(ctx, v)
	}
	if err := s.deps.Memories.Release(v.ID); err != nil {
		return VM{}, err
	}
	if err := s.deps.Files.Settle(v.ID, s.deps.Memories.TakeIn); err != nil {
		return VM{}, err
	}
	return s.update(ctx, v.ID, func(v *VM) {
		v.Machine = nil
		if v.Sleep != nil {
			settled := *v.Sleep
			settled.Staged = false
			v.Sleep = &settled
		}
	})
}
