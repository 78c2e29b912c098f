package clone

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Snapshot saves the VM's memory, devices and disk of one moment, and returns
// once they are durable. The guest is paused while they are copied. A VM that
// sleeps or is paused stays so.
//
// Errors: errs.Invalid with field name; errs.Conflict when there is no memory
// to save, or with code name_taken or snapshot_limit; errs.Exhausted when the
// host's disk is full; errs.Unsupported. After an error the VM is as before, and
// nothing of the snapshot is left.
func (s *Service) Snapshot(ctx context.Context, scope access.Scope, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error) {
	draft := snapshot.Snapshot{Kind: snapshot.Manual, Name: req.Name}
	if req.Automatic {
		draft.Kind = snapshot.Automatic
	}
	return s.take(ctx, scope, id, draft, req.Stop)
}

// SnapshotWarm takes a snapshot of one of hatchd's own VMs for the warm pool.
func (s *Service) SnapshotWarm(ctx context.Context, id string) (snapshot.Snapshot, error) {
	return s.take(ctx, access.Owner(access.SystemID), id, snapshot.Snapshot{Kind: snapshot.Warm}, false)
}

func (s *Service) take(ctx context.Context, scope access.Scope, id string, draft snapshot.Snapshot, sleep bool) (snapshot.Snapshot, error) {
	var taken snapshot.Snapshot
	_, err := s.Runner.Run(ctx, operation.Op{Scope: scope, VMID: id, Name: "snapshot", Do: func(ctx context.Context, v vm.VM) (_ vm.VM, err error) {
		if sleep && !v.Asleep() {
			taken, err = s.takeAsleep(ctx, v, draft)
		} else {
			taken, err = s.takeNow(ctx, v, draft)
		}
		return v, err
	}})
	if err != nil { // the operation may still run, and write to taken
		return snapshot.Snapshot{}, err
	}
	return taken, nil
}

// takeAsleep puts the VM to sleep and takes a snapshot of that. A snapshot that
// is refused leaves it running.
func (s *Service) takeAsleep(ctx context.Context, v vm.VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	if _, err := s.Power.CheckSleep(ctx, v); err != nil {
		return snapshot.Snapshot{}, err
	}
	snap, err := s.begin(ctx, v, draft)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	asleep, err := s.Power.Sleep(ctx, v)
	if err != nil {
		s.Snapshots.Abandon(ctx, snap)
		return snapshot.Snapshot{}, err
	}
	taken, err := s.finish(ctx, asleep, snap, func(ctx context.Context, snap snapshot.Snapshot) error { return s.captureAsleep(ctx, asleep, snap) })
	if err != nil {
		_, wakeErr := s.Power.WakeAgain(ctx, asleep)
		err = errors.Join(err, wakeErr)
	}
	return taken, err
}

func (s *Service) takeNow(ctx context.Context, v vm.VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	if m, err := s.Live.Running(ctx, v, "take a snapshot of"); err == nil { // capturer says why not
		s.Power.TrimDisk(ctx, v, m)
	}
	capture, err := s.capturer(ctx, v)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	snap, err := s.begin(ctx, v, draft)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	return s.finish(ctx, v, snap, capture)
}

// captureFunc copies a VM's machine, memory and disk into a snapshot.
type captureFunc func(context.Context, snapshot.Snapshot) error

// capturer returns how to capture the VM: asleep, or running.
// Errors: errs.Unsupported with code snapshot_unsupported; those of Registry.Running.
func (s *Service) capturer(ctx context.Context, v vm.VM) (captureFunc, error) {
	if !s.Engine.CanSleep(v) {
		return nil, errs.New(errs.Unsupported, "snapshot_unsupported", "cannot take a snapshot of VM %s: %s cannot save guests here", v.ID, v.Driver).
			WithHint("hatch doctor says what is wrong with %s", v.Driver)
	}
	if v.Asleep() {
		return func(ctx context.Context, snap snapshot.Snapshot) error { return s.captureAsleep(ctx, v, snap) }, nil
	}
	m, err := s.Live.Running(ctx, v, "take a snapshot of")
	if err != nil {
		return nil, err
	}
	s.Power.AwaitKernel(ctx, v)
	return func(ctx context.Context, snap snapshot.Snapshot) error { return s.captureRunning(ctx, v, m, snap) }, nil
}

// begin reserves disk space and a directory for a snapshot of the VM as it is.
func (s *Service) begin(ctx context.Context, v vm.VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	bytes, err := s.Engine.Files.Allocated(v.ID)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	memory, err := s.Engine.MemoryBytes(ctx, v)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	if draft.Kind != snapshot.Ephemeral { // whose memory stays in RAM
		bytes += memory
	}
	if draft.VM, err = s.origin(ctx, v); err != nil {
		return snapshot.Snapshot{}, err
	}
	draft.OwnerID, draft.VMID, draft.ParentID, draft.Machine = v.OwnerID, v.ID, v.SnapshotID, s.machineOf(v)
	return s.Snapshots.Begin(ctx, draft, bytes)
}

// finish captures the VM into a snapshot that was begun, and makes it durable.
func (s *Service) finish(ctx context.Context, v vm.VM, snap snapshot.Snapshot, capture captureFunc) (taken snapshot.Snapshot, err error) {
	if err = capture(ctx, snap); err == nil {
		taken, err = s.Snapshots.Finish(ctx, snap)
	}
	if err != nil {
		s.Snapshots.Abandon(ctx, snap)
		return snapshot.Snapshot{}, err
	}
	if _, err := s.Runner.Update(ctx, v.ID, func(v *vm.VM) { v.SnapshotID = taken.ID }); err != nil {
		s.Log.Error("cannot store a vm's latest snapshot", logkey.VM, v.ID, logkey.Error, err)
	}
	s.Log.Info("snapshot taken", logkey.VM, v.ID, logkey.Snapshot, taken.ID, logkey.Bytes, taken.Bytes, logkey.Took, time.Since(taken.CreatedAt))
	return taken, nil
}

func (s *Service) captureAsleep(ctx context.Context, v vm.VM, snap snapshot.Snapshot) error {
	disk := s.Engine.Files.Disk(v.ID)
	spec, err := s.Engine.Spec(ctx, v, disk)
	if err != nil {
		return err
	}
	saved := s.Engine.Memories.Dir(v.ID)
	if err := s.Drivers[v.Driver].Check(spec, saved); err != nil {
		return err
	}
	if err := vmm.AdaptSaved(saved, s.SnapshotFiles.Dir(snap.ID), spec); err != nil {
		return err
	}
	memory, index := s.Engine.Memories.Saved(v.ID, v.Sleep.Durable)
	return s.capture(ctx, snap, snapshot.Parts{Memory: memory, Index: index, Disk: disk})
}

func (s *Service) captureRunning(ctx context.Context, v vm.VM, m *live.Machine, snap snapshot.Snapshot) error {
	err := s.saveRunning(ctx, v, m, snap)
	return errors.Join(err, s.Engine.EmptyMemory(v))
}

func (s *Service) saveRunning(ctx context.Context, v vm.VM, m *live.Machine, snap snapshot.Snapshot) error {
	disk := s.Engine.Files.Disk(v.ID)
	spec, err := s.Engine.Spec(ctx, v, disk)
	if err != nil {
		return err
	}
	if err := m.Save(ctx, spec, s.SnapshotFiles.Dir(snap.ID)); err != nil {
		return err
	}
	began := time.Now()
	err = s.capture(ctx, snap, snapshot.Parts{Memory: s.Engine.Memories.Path(v.ID), Disk: disk})
	s.Log.Debug("memory and disk copied", logkey.VM, v.ID, logkey.Took, time.Since(began), logkey.Error, err)
	if v.State != vm.Paused {
		err = errors.Join(err, m.Resume(ctx))
		s.Power.SetClock(v.ID, m)
	}
	return err
}

func (s *Service) capture(ctx context.Context, snap snapshot.Snapshot, from snapshot.Parts) error {
	if snap.Kind == snapshot.Ephemeral {
		return s.SnapshotFiles.CaptureEphemeral(ctx, snap.ID, from)
	}
	return s.SnapshotFiles.Capture(ctx, snap.ID, from)
}
