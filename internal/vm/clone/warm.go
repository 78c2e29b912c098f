package clone

import (
	"context"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// Shape returns the shape that the VM has, or would have if it were made now.
func (s *Service) Shape(ctx context.Context, v vm.VM) (vm.Shape, error) {
	origin, err := s.origin(ctx, v)
	return vm.ShapeOf(snapshot.Snapshot{VM: origin, Machine: s.machineHere(v.Driver)}), err
}

// IsCurrent reports whether a VM that is made now would have this shape.
func (s *Service) IsCurrent(ctx context.Context, shape vm.Shape) bool {
	if !s.Engine.BootFiles.Unchanged(shape.Boot) {
		return false
	}
	initramfs, err := s.Engine.BootFiles.Initramfs(ctx, shape.Boot)
	return err == nil && filepath.Base(initramfs) == shape.Initramfs && s.machineHere(shape.Machine.Driver) == shape.Machine
}

// OfShape returns a new VM of hatchd's own user with this shape, not stored yet.
func OfShape(shape vm.Shape) vm.VM {
	now, spec := vm.Now(), shape.Spec()
	spec.Driver = shape.Machine.Driver
	return vm.VM{
		ID: id.New(vm.IDPrefix), OwnerID: access.SystemID, Spec: spec,
		Intent: vm.IntentRunning, State: vm.Starting, CreatedAt: now, UpdatedAt: now,
	}
}

// StartNew starts a new VM: as a clone from the warm pool if it has a snapshot of
// the VM's shape, else by booting.
func (s *Service) StartNew(ctx context.Context, v vm.VM) (vm.VM, error) {
	if s.Warm == nil {
		return s.Power.Boot(ctx, v)
	}
	shape, err := s.Shape(ctx, v)
	if err != nil {
		return s.Power.Boot(ctx, v) // which reports the error
	}
	warm, ok := s.Warm.Find(ctx, shape, func(ctx context.Context) error { return s.Capacity.CheckWarmMemory(ctx, v) })
	if !ok {
		v, err = s.Power.Boot(ctx, v)
		if err == nil {
			s.Warm.Missed(ctx, shape)
		}
		return v, err
	}
	defer warm.Release()
	return s.cloneOrBoot(ctx, v, warm)
}

// cloneOrBoot clones the VM from a warm snapshot; when that fails, it boots.
func (s *Service) cloneOrBoot(ctx context.Context, v vm.VM, warm vm.WarmSnapshot) (vm.VM, error) {
	// If hatchd crashes here, the guest still has the original's identity: the mark
	// tells the next hatchd.
	marked, err := s.Runner.Update(ctx, v.ID, vm.ToCloning(vm.FromWarm))
	if err != nil {
		return vm.VM{}, err
	}
	base := func() (*os.File, error) { return warm.Memory, nil }
	r, err := s.transition(ctx, marked, transition.Source{Snapshot: warm.Snapshot, Base: base, Setup: vm.SetupAnew})
	switch {
	case err == nil:
		return r.VM, nil
	case r.Stuck:
		return s.Power.FailStart(ctx, r, err)
	}
	if s.spoils(err) && ctx.Err() == nil {
		s.Warm.Spoiled(ctx, warm.Snapshot, err)
	}
	s.Log.Warn("cannot clone a new vm from the warm pool; it boots instead", logkey.VM, v.ID, logkey.Snapshot, warm.Snapshot.ID, logkey.Error, err)
	if v, err = s.Runner.Update(ctx, v.ID, vm.ToCloning("")); err != nil {
		return vm.VM{}, err
	}
	return s.Power.Boot(ctx, v)
}

// spoils reports whether a clone failed because of its snapshot, so that the next
// one would fail, too. A full host says nothing about the snapshot.
func (s *Service) spoils(err error) bool {
	if errs.Is(err, errs.Exhausted) || s.IsFull(err) {
		return false
	}
	return transition.StepOf(err) == "machine" || errs.HasCode(err, "copy_not_confirmed") || errs.HasCode(err, "snapshot_unusable")
}
