package clone

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// Fork clones new VMs from a running or sleeping VM of the user, and returns once they have
// their own identity. The VM continues; its guest is paused while its memory and
// disk are copied once, for any count.
//
// Errors: errs.Invalid names the field; errs.Conflict when the VM has no memory
// to copy; errs.Exhausted; errs.Unsupported; and, when all clones failed, the first
// one's error. When ctx ends before, errs.TimedOut with code still_working: the
// clones are still being made.
func (s *Service) Fork(ctx context.Context, ownerID, id string, req vm.CloneRequest) (vm.Clones, error) {
	if err := checkRequest(req); err != nil {
		return vm.Clones{}, err
	}
	scope := access.Owner(ownerID)
	if _, err := s.Power.Store.VM(ctx, scope, id); err != nil {
		return vm.Clones{}, err
	}
	unlock, err := s.Runner.LockRecovered(ctx, id)
	if err != nil {
		return vm.Clones{}, err
	}
	return operation.Detach(ctx, s.Runner, func(ctx context.Context) (vm.Clones, error) {
		snap, reserved, err := s.captureFork(ctx, scope, id, unlock, req)
		if err != nil {
			return vm.Clones{}, err
		}
		defer s.Snapshots.Abandon(ctx, snap)
		return s.cloneAll(ctx, snap, reserved, req)
	})
}

// captureFork takes the ephemeral snapshot of a fork and reserves the clones. It
// pauses the guest as briefly as it can, and not at all for a request that would be
// refused. unlock is called once the VM is captured.
func (s *Service) captureFork(ctx context.Context, scope access.Scope, id string, unlock func(), req vm.CloneRequest) (snap snapshot.Snapshot, reserved reservation, err error) {
	defer unlock()
	_, err = s.Runner.RunLocked(ctx, operation.Op{Scope: scope, VMID: id, Name: "fork", Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
		capture, err := s.capturer(ctx, v)
		if err == nil {
			err = s.Engine.CheckVersion("fork", v)
		}
		if err != nil {
			return vm.VM{}, err
		}
		memory, err := s.Engine.MemoryBytes(ctx, v)
		if err != nil {
			return vm.VM{}, err
		}
		if snap, err = s.begin(ctx, v, snapshot.Snapshot{Kind: snapshot.Ephemeral}); err != nil {
			return vm.VM{}, err
		}
		if reserved, err = s.reserve(ctx, snap, memory, req); err == nil {
			err = capture(ctx, snap)
		}
		if err != nil {
			s.abandon(ctx, reserved)
			s.Snapshots.Abandon(ctx, snap)
		}
		return v, err
	}})
	return snap, reserved, err
}

// CreateFrom clones new VMs from a snapshot of the user, and returns once they
// have their own identity. Errors: as Fork's, and errs.Conflict with code snapshot_unusable.
func (s *Service) CreateFrom(ctx context.Context, ownerID, snapshotID string, req vm.CloneRequest) (vm.Clones, error) {
	if err := checkRequest(req); err != nil {
		return vm.Clones{}, err
	}
	snap, release, err := s.pin(ctx, ownerID, snapshotID)
	if err != nil {
		return vm.Clones{}, err
	}
	return operation.Detach(ctx, s.Runner, func(ctx context.Context) (vm.Clones, error) {
		defer release()
		if err := s.Fits(snap); err != nil {
			return vm.Clones{}, err
		}
		reserved, err := s.reserve(ctx, snap, min(snap.Bytes, int64(snap.VM.MemMiB)<<20), req)
		if err != nil {
			return vm.Clones{}, err
		}
		if err := s.verify(ctx, snap); err != nil {
			s.abandon(ctx, reserved)
			return vm.Clones{}, err
		}
		return s.cloneAll(ctx, snap, reserved, req)
	})
}

func checkRequest(req vm.CloneRequest) error {
	if req.Count < 1 || req.Count > vm.MaxClones {
		return errs.InvalidField("count", "%d is out of range; 1 to %d can be given", req.Count, vm.MaxClones)
	}
	return nil
}

// cloneAll makes all reserved clones from the same memory.
func (s *Service) cloneAll(ctx context.Context, snap snapshot.Snapshot, r reservation, req vm.CloneRequest) (vm.Clones, error) {
	var base *os.File
	open := sync.OnceValues(func() (_ *os.File, err error) {
		release, err := s.readSlots.Acquire(ctx, snap.OwnerID)
		if err != nil {
			return nil, err
		}
		defer release()
		base, err = s.SnapshotFiles.Base(ctx, snap.ID)
		return base, err
	})
	made, failures := make([]vm.VM, len(r.vms)), make([]error, len(r.vms))
	var each sync.WaitGroup
	for i, v := range r.vms {
		each.Go(func() {
			defer r.unlock[v.ID]()
			made[i], failures[i] = s.clone(ctx, v, transition.Source{Snapshot: snap, Base: open, Setup: req.Setup()})
		})
	}
	each.Wait()
	if base != nil {
		_ = base.Close()
	}
	r.unpin() // the clones pin the memory themselves now
	return collect(made, failures)
}

func collect(made []vm.VM, failures []error) (vm.Clones, error) {
	var c vm.Clones
	for i, err := range failures {
		if err != nil {
			c.Failed = append(c.Failed, err)
		} else {
			c.VMs = append(c.VMs, made[i])
		}
	}
	if len(c.VMs) == 0 {
		return vm.Clones{}, c.Failed[0]
	}
	return c, nil
}

// clone makes one VM when it has a slot. On error nothing is left of it, unless
// its VMM could not be ended: then it stays, to be deleted.
func (s *Service) clone(ctx context.Context, v vm.VM, from transition.Source) (vm.VM, error) {
	return s.Runner.Record(ctx, v, "create", func(ctx context.Context, v vm.VM) (vm.VM, error) {
		release, err := s.cloneSlots.Acquire(ctx, v.OwnerID)
		if err != nil {
			s.forget(ctx, v.ID)
			return vm.VM{}, err
		}
		defer release()
		r, err := s.transition(ctx, v, from)
		switch {
		case err == nil:
			return r.VM, nil
		case r.Stuck:
			return s.Power.FailStart(ctx, r, err)
		}
		s.Log.Warn("cannot clone vm", logkey.VM, v.ID, logkey.Snapshot, from.Snapshot.ID, logkey.Error, err)
		s.forget(ctx, v.ID)
		return vm.VM{}, transition.Public(err, errs.New(errs.Internal, "copy_failed", "cannot make a VM from the snapshot: the %s step failed", transition.StepOf(err)))
	})
}

// transition runs the steps of a clone, when the host has CPUs for another start, and
// watches its machine.
func (s *Service) transition(ctx context.Context, v vm.VM, from transition.Source) (*transition.Run, error) {
	release, err := s.Power.AcquireStart(ctx, v.OwnerID)
	if err != nil {
		return &transition.Run{VM: v, Fresh: true}, err
	}
	defer release()
	r, err := s.Engine.Clone(ctx, v, from, s.Runner.Update)
	if err == nil {
		s.Live.Watch(v.ID, r.Live)
	}
	return r, err
}

// forget deletes the row of a clone that failed.
func (s *Service) forget(ctx context.Context, id string) {
	if err := s.Power.Forget(ctx, id); err != nil {
		s.Log.Error("cannot delete the row of a failed clone", logkey.VM, id, logkey.Error, err)
		s.Runner.Announce(id)
	}
}

// name returns the i-th clone's name.
func name(req vm.CloneRequest, i int) string {
	if req.Count > 1 && req.Name != "" {
		return fmt.Sprintf("%s-%d", req.Name, i+1)
	}
	return req.Name
}
