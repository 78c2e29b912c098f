package transition

import (
	"context"
	"errors"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

func (e *Engine) provision(ctx context.Context, r *Run) error {
	if !r.Fresh {
		return e.Files.Seed(ctx, r.VM)
	}
	return e.Evictor.EvictFor(ctx, r.VM.OwnerID, func() error { return e.Files.Provision(ctx, r.VM) })
}

func (e *Engine) provisionClone(ctx context.Context, r *Run, from Source) error {
	return e.Evictor.EvictFor(ctx, r.VM.OwnerID, func() error {
		return e.Files.ProvisionFrom(ctx, r.VM, func(ctx context.Context, path string) error {
			return e.Snapshots.CopyDisk(ctx, from.Snapshot.ID, path)
		})
	})
}

func (e *Engine) unprovision(_ context.Context, r *Run) {
	if !r.Fresh || r.Stuck {
		return // the disk holds the owner's data, or is in use
	}
	if err := e.Files.Remove(r.VM.ID); err != nil {
		e.Log.Error("cannot remove the files of a failed create", logkey.VM, r.VM.ID, logkey.Error, err)
	}
}

// CanSleep reports whether the VM's driver can save machines.
func (e *Engine) CanSleep(v vm.VM) bool {
	d, ok := e.Drivers[v.Driver]
	return ok && d.Info().Capabilities.Save
}

// CheckVersion returns an error if the VM could not continue from what its machine, or
// an earlier one, has saved, because another version of the VMM is installed now. A
// machine keeps the version that it was started with. verb is what the caller does.
// Errors: errs.Conflict with code vmm_replaced, or saved_unusable if the VM sleeps.
func (e *Engine) CheckVersion(verb string, v vm.VM) error {
	d, ok := e.Drivers[v.Driver]
	if !ok {
		return nil // no operation on the VM is possible
	}
	installed := d.Info().Version
	if v.Asleep() {
		saved, err := vmm.ReadSaved(e.Memories.Dir(v.ID))
		if err != nil {
			return nil // the wake says what is wrong with it
		}
		return saved.CheckVersion(installed)
	}
	if v.Machine == nil || v.Machine.Version == "" || v.Machine.Version == installed {
		return nil
	}
	return errs.New(errs.Conflict, "vmm_replaced", "cannot %s VM %s: it runs on version %s of %s, and %s is installed, which cannot continue what that saves",
		verb, v.ID, v.Machine.Version, v.Driver, installed).
		WithHint("restart the VM: then it runs on the installed version")
}

func (e *Engine) makeMemory(_ context.Context, r *Run) error {
	if !e.CanSleep(r.VM) {
		return nil
	}
	return e.Memories.Make(r.VM.ID, r.VM.MemMiB, e.uid(r.VM))
}

func (e *Engine) releaseMemory(_ context.Context, r *Run) {
	if !r.Stuck {
		e.DropMemory(r.VM.ID)
	}
}

// DropMemory frees all memory of a VM without a machine, in RAM and on disk.
func (e *Engine) DropMemory(id string) {
	if err := errors.Join(e.Memories.Release(id), e.Memories.Forget(id)); err != nil {
		e.Log.Error("cannot drop the memory of a vm", logkey.VM, id, logkey.Error, err)
	}
}

// EmptyMemory frees the RAM that a save has filled, even one that failed, of a
// running machine that does not use it: one that maps a base.
func (e *Engine) EmptyMemory(v vm.VM) error {
	if v.Machine == nil || !v.Machine.IsBased() {
		return nil
	}
	return e.Memories.Make(v.ID, v.MemMiB, e.uid(v))
}

// MemoryBytes estimates what the VM's memory takes when saved.
// Errors: errs.Exhausted when RAM cannot hold it.
func (e *Engine) MemoryBytes(ctx context.Context, v vm.VM) (int64, error) {
	if v.Asleep() {
		return v.Sleep.Bytes, nil
	}
	m, err := e.Live.Get(ctx, v, live.Held)
	if err != nil {
		return 0, err
	}
	if m == nil || v.Machine == nil || !v.Machine.IsBased() {
		return e.Memories.Used(v.ID)
	}
	// The file in RAM does not say how much a guest uses that maps a base, and a
	// save fills it with all of the base.
	stats, err := m.Stats(ctx)
	if err != nil {
		return 0, err
	}
	bytes := min(stats.Resident+v.Machine.Base.Bytes, int64(v.MemMiB)<<20)
	return bytes, e.Memories.CanHold(v.ID, bytes)
}

func (e *Engine) prepareSave(ctx context.Context, r *Run) error {
	bytes, err := e.MemoryBytes(ctx, r.VM)
	if err != nil {
		return err
	}
	r.sleep = &vm.Sleep{Bytes: bytes}
	return e.Evictor.EvictFor(ctx, r.VM.OwnerID, func() error { return e.Memories.Prepare(r.VM.ID, bytes) })
}

func (e *Engine) forgetSaved(_ context.Context, r *Run) {
	if err := e.Memories.Forget(r.VM.ID); err != nil {
		e.Log.Error("cannot remove the saved state of a vm", logkey.VM, r.VM.ID, logkey.Error, err)
	}
}

func (e *Engine) save(ctx context.Context, r *Run) error {
	spec, err := e.Spec(ctx, r.VM, e.Files.Disk(r.VM.ID))
	if err != nil {
		return err
	}
	if err := r.machine.Save(ctx, spec, e.Memories.Dir(r.VM.ID)); err != nil {
		return err
	}
	r.sleep.Bytes, err = e.Memories.Used(r.VM.ID)
	return err
}

func (e *Engine) continueAfterSave(ctx context.Context, r *Run) {
	if r.VM.State != vm.Paused {
		if err := r.machine.Resume(ctx); err != nil {
			e.Log.Error("cannot resume a guest after a failed sleep", logkey.VM, r.VM.ID, logkey.Error, err)
		}
	}
	if err := e.EmptyMemory(r.VM); err != nil {
		e.Log.Error("cannot free the RAM of a failed sleep", logkey.VM, r.VM.ID, logkey.Error, err)
	}
}

func (e *Engine) recall(ctx context.Context, r *Run) error {
	return e.Memories.Recall(ctx, r.VM.ID, r.sleep.Durable, e.uid(r.VM))
}

// freeRecalled frees RAM that the memory on disk does not need.
func (e *Engine) freeRecalled(_ context.Context, r *Run) {
	if r.Stuck || !r.sleep.Durable {
		return
	}
	if err := e.Memories.Release(r.VM.ID); err != nil {
		e.Log.Error("cannot free the RAM of a sleeping vm", logkey.VM, r.VM.ID, logkey.Error, err)
	}
}
