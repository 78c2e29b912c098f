package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// SnapshotRequest is how a snapshot is to be taken.
type SnapshotRequest struct {
	Name      string // "" for none
	Automatic bool   // it may be removed to make room for others
	Stop      bool   // the VM sleeps afterwards; without, it goes on
}

// Snapshot keeps the VM's memory, devices and disk of one moment, and returns
// once that is safe on disk. The guest stands while they are copied. A VM that
// sleeps or is paused stays so.
//
// Errors: errs.Invalid with field name; errs.Conflict when there is no memory
// to keep, or with code name_taken or snapshot_limit; errs.Exhausted when the
// host's disk is full; errs.Unsupported. After an error the VM is as before, and
// nothing of the snapshot is left.
func (s *Service) Snapshot(ctx context.Context, owner, id string, req SnapshotRequest) (snapshot.Snapshot, error) {
	draft := snapshot.Snapshot{Kind: snapshot.Manual, Name: req.Name}
	if req.Automatic {
		draft.Kind = snapshot.Automatic
	}
	return s.snapshotAs(ctx, owner, id, draft, req.Stop)
}

func (s *Service) snapshotAs(ctx context.Context, owner, id string, draft snapshot.Snapshot, stop bool) (snapshot.Snapshot, error) {
	var taken snapshot.Snapshot
	_, err := s.operate(ctx, owner, id, "snapshot", func(ctx context.Context, v VM) (_ VM, err error) {
		if stop {
			taken, err = s.keepAsleep(ctx, v, draft)
		} else {
			taken, err = s.keep(ctx, v, draft)
		}
		return v, err
	})
	if err != nil { // then somebody may still be writing to it
		return snapshot.Snapshot{}, err
	}
	return taken, nil
}

// keepAsleep lets the VM sleep and takes a snapshot of that. What would be
// refused leaves it running.
func (s *Service) keepAsleep(ctx context.Context, v VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	if v.Sleep != nil {
		return s.keep(ctx, v, draft)
	}
	if _, err := s.readyToSleep(ctx, v); err != nil {
		return snapshot.Snapshot{}, err
	}
	one, err := s.begin(ctx, v, draft)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	asleep, err := s.ensureAsleep(ctx, v)
	if err != nil {
		s.deps.Snapshots.Abandon(ctx, one)
		return snapshot.Snapshot{}, err
	}
	taken, err := s.fill(ctx, asleep, one, func(ctx context.Context, one snapshot.Snapshot) error { return s.captureAsleep(ctx, asleep, one) })
	if err != nil {
		_, wakeErr := s.ensureAwake(ctx, asleep)
		err = errors.Join(err, wakeErr)
	}
	return taken, err
}

// keep takes a snapshot that counts.
func (s *Service) keep(ctx context.Context, v VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	copyInto, err := s.standing(ctx, v)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	one, err := s.begin(ctx, v, draft)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	return s.fill(ctx, v, one, copyInto)
}

// fill copies what the VM is into a snapshot that was begun, and makes it count.
func (s *Service) fill(ctx context.Context, v VM, one snapshot.Snapshot, copyInto func(context.Context, snapshot.Snapshot) error) (kept snapshot.Snapshot, err error) {
	if err = copyInto(ctx, one); err == nil {
		kept, err = s.deps.Snapshots.Finish(ctx, one)
	}
	if err != nil {
		s.deps.Snapshots.Abandon(ctx, one)
		return snapshot.Snapshot{}, err
	}
	if _, err := s.update(ctx, v.ID, func(v *VM) { v.SnapshotID = kept.ID }); err != nil {
		s.deps.Log.Error("cannot store the snapshot that a vm goes on from", "vm", v.ID, "err", err)
	}
	s.deps.Log.Info("snapshot taken", "vm", v.ID, "snapshot", kept.ID, "bytes", kept.Bytes, "took", time.Since(kept.CreatedAt))
	return kept, nil
}

// begin makes room for a snapshot of the VM as it is.
func (s *Service) begin(ctx context.Context, v VM, draft snapshot.Snapshot) (snapshot.Snapshot, error) {
	bytes, err := s.snapshotBytes(ctx, v, draft.Kind)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	if draft.VM, err = s.originOf(ctx, v); err != nil {
		return snapshot.Snapshot{}, err
	}
	draft.OwnerID, draft.VMID, draft.ParentID, draft.Machine = v.OwnerID, v.ID, v.SnapshotID, s.machineHere(v.Driver)
	return s.deps.Snapshots.Begin(ctx, draft, bytes)
}

// standing returns the way to copy a VM whose guest stands, or can be made to.
func (s *Service) standing(ctx context.Context, v VM) (func(context.Context, snapshot.Snapshot) error, error) {
	if !s.canSleep(v) {
		return nil, errs.New(errs.Unsupported, "snapshot_unsupported", "cannot take a snapshot of VM %s: %s cannot save guests here", v.ID, v.Driver).
			WithHint("hatch doctor says what is wrong with %s", v.Driver)
	}
	if v.Sleep != nil {
		return func(ctx context.Context, one snapshot.Snapshot) error { return s.captureAsleep(ctx, v, one) }, nil
	}
	in, err := s.running(ctx, v, "take a snapshot of")
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, one snapshot.Snapshot) error { return s.captureRunning(ctx, v, in, one) }, nil
}

// snapshotBytes is about what a snapshot of the VM will take on disk.
func (s *Service) snapshotBytes(ctx context.Context, v VM, kind snapshot.Kind) (int64, error) {
	files, err := s.deps.Files.Allocated(v.ID)
	if err != nil {
		return 0, err
	}
	memory, err := s.memoryBytes(ctx, v)
	if err != nil {
		return 0, err
	}
	if kind == snapshot.Passing { // whose memory stays in RAM
		return files, nil
	}
	return files + memory, nil
}

// memoryBytes is about what the VM's memory takes where it is kept.
func (s *Service) memoryBytes(ctx context.Context, v VM) (int64, error) {
	if v.Sleep != nil {
		return v.Sleep.Bytes, nil
	}
	return s.memoryToSave(ctx, v)
}

// memoryToSave is about how much of its memory a guest has used that runs. The
// file in RAM of one that shares a base does not tell, and a save fills it with
// all of the base, too. Errors: errs.Exhausted when it could not be.
func (s *Service) memoryToSave(ctx context.Context, v VM) (bytes int64, err error) {
	in := s.instanceOf(v.ID)
	if in == nil || v.Machine == nil || !v.Machine.IsBased() {
		return s.deps.Memories.Used(v.ID)
	}
	stats, err := in.machine.Stats(ctx)
	if err != nil {
		return 0, err
	}
	bytes = min(stats.Resident+v.Machine.Base.Bytes, int64(v.MemMiB)<<20)
	return bytes, s.deps.Memories.CanHold(v.ID, bytes)
}

func (s *Service) captureAsleep(ctx context.Context, v VM, one snapshot.Snapshot) error {
	spec, err := s.standingSpec(ctx, v, s.deps.Files.Disk(v.ID))
	if err != nil {
		return err
	}
	saved := s.deps.Memories.Dir(v.ID)
	if err := s.deps.Drivers[v.Driver].Check(spec, saved); err != nil {
		return err
	}
	if err := vmm.AdaptSaved(saved, s.deps.SnapshotFiles.Dir(one.ID), spec); err != nil {
		return err
	}
	memory, index := s.deps.Memories.Kept(v.ID, v.Sleep.Durable)
	return s.captureFiles(ctx, one, snapshot.Parts{Memory: memory, Index: index, Disk: s.deps.Files.Disk(v.ID)})
}

func (s *Service) captureRunning(ctx context.Context, v VM, in *instance, one snapshot.Snapshot) error {
	return errors.Join(s.saveRunning(ctx, v, in, one), s.emptyMemory(v))
}

func (s *Service) saveRunning(ctx context.Context, v VM, in *instance, one snapshot.Snapshot) error {
	spec, err := s.standingSpec(ctx, v, s.deps.Files.Disk(v.ID))
	if err != nil {
		return err
	}
	if err := in.machine.Save(ctx, spec, s.deps.SnapshotFiles.Dir(one.ID)); err != nil {
		return err
	}
	began := time.Now()
	err = s.captureFiles(ctx, one, snapshot.Parts{Memory: s.deps.Memories.Path(v.ID), Disk: s.deps.Files.Disk(v.ID)})
	s.deps.Log.Debug("memory and disk copied", "vm", v.ID, "took", time.Since(began), "err", err)
	if v.State != Paused {
		err = errors.Join(err, in.machine.Resume(ctx))
		s.setClock(v.ID, in)
	}
	return err
}

// emptyMemory gives the RAM back that a save has filled, also one that failed,
// of a running machine that does not use it.
func (s *Service) emptyMemory(v VM) error {
	if v.Machine == nil || !v.Machine.IsBased() {
		return nil
	}
	return s.deps.Memories.Make(v.ID, v.MemMiB, s.uid(v))
}

func (s *Service) captureFiles(ctx context.Context, one snapshot.Snapshot, from snapshot.Parts) error {
	capture := s.deps.SnapshotFiles.Capture
	if one.Kind == snapshot.Passing {
		capture = s.deps.SnapshotFiles.CapturePassing
	}
	return capture(ctx, one.ID, from)
}

// originOf is what a snapshot keeps of a VM's record.
func (s *Service) originOf(ctx context.Context, v VM) (snapshot.Origin, error) {
	initramfs, err := s.deps.Images.Initramfs(ctx, v.Boot)
	return snapshot.Origin{
		Hostname: v.Hostname(), InstanceID: v.InstanceID(), ImageID: v.ImageID, TemplateID: v.TemplateID,
		Boot: v.Boot, Initramfs: filepath.Base(initramfs),
		VCPUs: v.VCPUs, MemMiB: v.MemMiB, DiskMiB: v.DiskMiB, BootArgs: v.BootArgs,
		Network: v.EnableNetwork, MAC: v.Lease.MAC, Address: v.Lease.Address,
		UserData: v.UserData, SSHKeys: v.SSHKeys, Labels: v.Labels, RateLimits: v.RateLimits,
	}, err
}

// Fits reports whether what a snapshot holds could be woken on this host as it
// is now. Errors: errs.Conflict with code snapshot_unusable.
func (s *Service) Fits(one snapshot.Snapshot) error {
	here := s.machineHere(one.Machine.Driver)
	for _, pair := range []struct{ what, saved, now string }{
		{"the version of " + one.Machine.Driver, one.Machine.Version, here.Version},
		{"the acceleration", one.Machine.Accel, here.Accel},
		{"the host's processor", one.Machine.CPU, here.CPU},
	} {
		if pair.saved != pair.now {
			return unfit(one, fmt.Sprintf("%s was %q and is %q now", pair.what, pair.saved, pair.now))
		}
	}
	if !one.VM.Boot.Kernel.Unchanged() || !one.VM.Boot.Rootfs.Unchanged() {
		return unfit(one, "its kernel or root file system is another one now")
	}
	return nil
}

func unfit(one snapshot.Snapshot, why string) *errs.Error {
	return errs.New(errs.Conflict, "snapshot_unusable", "snapshot %s cannot be used here: %s", one.ID, why).
		WithHint("use another one: compatibility.usable of GET /snapshots says which; this one can be used where all is as it was")
}
