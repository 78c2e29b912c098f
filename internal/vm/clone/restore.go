package clone

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Restore puts the VM back to a snapshot of it, the newest when none is named,
// in any phase, and returns once its guest continues from there. Its
// memory and disk are lost.
//
// Errors, before anything is changed: errs.Conflict with code no_snapshot, vm_resized or
// snapshot_unusable; errs.Invalid with field snapshot_id for another VM's
// snapshot; errs.Exhausted, with code memory_exhausted for its memory. When the
// snapshot is in place and the guest cannot be woken, the VM sleeps.
func (s *Service) Restore(ctx context.Context, scope access.Scope, id, snapshotID string) (vm.VM, error) {
	return s.Runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "restore", Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
		snap, release, err := s.pinOf(ctx, v, snapshotID)
		if err != nil {
			return vm.VM{}, err
		}
		defer release()
		return s.restore(ctx, v, snap)
	}})
}

// pinOf is pin for a snapshot of the VM; "" is the newest.
func (s *Service) pinOf(ctx context.Context, v vm.VM, id string) (_ snapshot.Snapshot, release func(), err error) {
	if id == "" {
		latest, err := s.Snapshots.Latest(ctx, access.Owner(v.OwnerID), v.ID)
		if err != nil {
			return snapshot.Snapshot{}, nil, err
		}
		id = latest.ID
	}
	snap, release, err := s.pin(ctx, v.OwnerID, id)
	if err != nil {
		return snapshot.Snapshot{}, nil, err
	}
	if snap.VMID == v.ID && (snap.VM.VCPUs != v.VCPUs || snap.VM.MemMiB != v.MemMiB) {
		release()
		return snapshot.Snapshot{}, nil, errs.New(errs.Conflict, "vm_resized", "cannot restore VM %s to %s: the VM has %d CPUs and %d MiB of memory, the snapshot %d and %d MiB",
			v.ID, snap.ID, v.VCPUs, v.MemMiB, snap.VM.VCPUs, snap.VM.MemMiB).
			WithHint("stop the VM and give it the sizes of the snapshot, or make a new VM from the snapshot")
	}
	if snap.VMID != v.ID {
		release()
		return snapshot.Snapshot{}, nil, errs.InvalidField("snapshot_id", "%s is a snapshot of another VM", snap.ID).
			WithHint("POST /vms with this snapshot_id makes a new VM from it")
	}
	return snap, release, nil
}

// restore checks, stages, commits by the row, and only then replaces anything:
// until the row is stored nothing of the VM has changed.
func (s *Service) restore(ctx context.Context, v vm.VM, snap snapshot.Snapshot) (vm.VM, error) {
	if err := s.Fits(snap); err != nil { // before all of it is read
		return vm.VM{}, err
	}
	if err := s.Capacity.CheckMemory(ctx, v); err != nil { // while the VM can still be left as it is
		return vm.VM{}, err
	}
	if err := s.verify(ctx, snap); err != nil {
		return vm.VM{}, err
	}
	if _, err := s.Live.Get(ctx, v, live.Adopt); err != nil { // FinishRestore ends the machine
		return vm.VM{}, err
	}
	if err := s.Capacity.EvictFor(ctx, v.OwnerID, func() error { return s.stage(ctx, v, snap) }); err != nil {
		return vm.VM{}, err
	}
	s.Power.StopPersisting(v.ID)
	staged, err := s.Runner.Update(ctx, v.ID, vm.ToRestoring(snap.ID, snap.Bytes, vm.Now()))
	if err != nil { // the next Stage, or the next start of hatchd, removes the staged files
		s.Power.Persist(v)
		return vm.VM{}, err
	}
	if v, err = s.Power.FinishRestore(ctx, staged); err != nil {
		return vm.VM{}, err
	}
	return s.Power.Wake(ctx, v)
}

// stage lays the snapshot out beside the VM's files.
func (s *Service) stage(ctx context.Context, v vm.VM, snap snapshot.Snapshot) error {
	return s.Engine.Files.Stage(ctx, v.ID, func(disk, saved string) error {
		if err := s.SnapshotFiles.CopyDisk(ctx, snap.ID, disk); err != nil {
			return err
		}
		spec, err := s.Engine.Spec(ctx, v, disk)
		if err != nil {
			return err
		}
		if err := vmm.AdaptSaved(s.SnapshotFiles.Dir(snap.ID), saved, spec); err != nil {
			return transition.BlameSnapshot(snap, err)
		}
		if err := s.SnapshotFiles.LinkMemory(snap.ID, saved); err != nil {
			return err
		}
		return transition.BlameSnapshot(snap, s.Drivers[v.Driver].Check(spec, saved))
	})
}
