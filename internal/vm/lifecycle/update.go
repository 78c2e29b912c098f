package lifecycle

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

// Update lets change change a VM's name, description, labels and published ports, and
// the sizes of a VM that has no machine and no saved memory: its next start uses them.
// The guest keeps its hostname. change sees the VM as it is; its error leaves all as it
// was. Errors: errs.NotFound; errs.Invalid; errs.Conflict with code name_taken, port_taken,
// port_in_use or vm_not_stopped; errs.Exhausted with code ports_exhausted; those of change.
//
// Other sizes are an operation on the VM: a restore in progress has checked the old ones.
// So are other ports: a start or a stop in progress opens or closes the old ones.
func (s *Service) Update(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error) {
	before, err := s.deps.Store.VM(ctx, scope, id)
	if err != nil {
		return vm.VM{}, err
	}
	after := before
	if err := change(&after); err != nil {
		return vm.VM{}, err
	}
	resizes, publishes := len(resized(before, after)) > 0, !slices.EqualFunc(before.Ports, after.Ports, machine.Port.Equal)
	if !resizes && !publishes {
		return s.revise(ctx, scope, id, change)
	}
	for _, check := range []func() error{ // without waiting for the VM
		func() error { return checkResize(before, after) },
		func() error { return s.check(after, vm.CreateRequest{}) },
	} {
		if err := check(); err != nil {
			return vm.VM{}, err
		}
	}
	op := operation.Op{
		Scope: scope, VMID: id, Name: "resize",
		Do: func(ctx context.Context, _ vm.VM) (vm.VM, error) { return s.revise(ctx, scope, id, change) },
	}
	if publishes {
		op.Name, op.Do = "publish", func(ctx context.Context, v vm.VM) (vm.VM, error) { return s.publish(ctx, scope, v, change) }
	}
	return s.runner.Run(ctx, op)
}

// publish revises a VM whose ports change, and has its listeners follow. If one cannot
// be opened, the VM stays as it was.
func (s *Service) publish(ctx context.Context, scope access.Scope, before vm.VM, change func(*vm.VM) error) (vm.VM, error) {
	after, err := s.revise(ctx, scope, before.ID, change)
	if err != nil || !after.State.Live() && !after.Asleep() { // without a guest nothing is open
		return after, err
	}
	if err = s.engine.Forward(after); err == nil {
		return after, nil
	}
	back, undoErr := s.deps.Store.ReviseVM(ctx, scope, before.ID, s.settings.Pools, func(v *vm.VM) error {
		putBack(v, after, before)
		return nil
	})
	if undoErr == nil {
		s.runner.Revised(back)
		undoErr = s.engine.Forward(back)
	}
	return vm.VM{}, errors.Join(err, undoErr)
}

// putBack undoes a change of a VM in v, but not what another request has changed since:
// such changes do not wait for the VM's lock.
func putBack(v *vm.VM, after, before vm.VM) {
	v.Ports, v.Lease.Ports = before.Ports, before.Lease.Ports
	undo(&v.Name, after.Name, before.Name)
	undo(&v.Spec.Hostname, after.Spec.Hostname, before.Spec.Hostname)
	undo(&v.Description, after.Description, before.Description)
	undo(&v.Idle, after.Idle, before.Idle)
	undo(&v.Expiry, after.Expiry, before.Expiry)
	if maps.Equal(v.Labels, after.Labels) {
		v.Labels = before.Labels
	}
}

func undo[T comparable](field *T, after, before T) {
	if *field == after {
		*field = before
	}
}

func (s *Service) revise(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error) {
	v, err := s.deps.Store.ReviseVM(ctx, scope, id, s.settings.Pools, func(v *vm.VM) error {
		before := *v
		if err := change(v); err != nil {
			return err
		}
		s.completeIdle(&v.Spec)
		if v.Name != before.Name {
			v.Spec.Hostname = before.Hostname()
		}
		if err := checkResize(before, *v); err != nil {
			return err
		}
		return s.checkChange(before, *v)
	})
	if err == nil {
		s.runner.Revised(v)
	}
	return v, err
}

// checkChange refuses what a change has put out of range. The rest may be so since the
// VM was created, as on a host that has fewer CPUs now.
func (s *Service) checkChange(before, after vm.VM) error {
	if len(resized(before, after)) > 0 {
		return s.check(after, vm.CreateRequest{})
	}
	var changed machine.Overrides
	if after.Description != before.Description {
		changed.Description = &after.Description
	}
	if !maps.Equal(after.Labels, before.Labels) {
		changed.Labels = after.Labels
	}
	if after.Idle != before.Idle {
		changed.Idle = &after.Idle
	}
	if after.Expiry != before.Expiry {
		changed.Expiry = &after.Expiry
	}
	if !slices.EqualFunc(after.Ports, before.Ports, machine.Port.Equal) {
		changed.Ports = after.Ports
	}
	if err := changed.Check(); err != nil || after.Name == before.Name {
		return err
	}
	return checkName(after, vm.CreateRequest{})
}

// resized returns the fields of the sizes that differ.
func resized(before, after vm.VM) (fields []string) {
	if before.VCPUs != after.VCPUs {
		fields = append(fields, "vcpu_count")
	}
	if before.MemMiB != after.MemMiB {
		fields = append(fields, "mem_mib")
	}
	return fields
}

// checkResize refuses other sizes for a guest that has memory, running or saved. A start
// in progress has set the state before it reads the sizes.
func checkResize(before, after vm.VM) error {
	fields := resized(before, after)
	phase, _ := before.Phase()
	resizable := phase == vm.PhaseStopped || phase == vm.PhaseFailed && before.Machine == nil
	if len(fields) == 0 || resizable {
		return nil
	}
	return errs.New(errs.Conflict, "vm_not_stopped", "%s: cannot be changed while the VM is %s, only while it is stopped", strings.Join(fields, " and "), before.State).
		WithField(fields[0]).WithHint("stop the VM first; its next start uses the new sizes")
}

// DeleteIf is Delete, unless check returns an error for the VM as it is.
func (s *Service) DeleteIf(ctx context.Context, scope access.Scope, id string, check func(vm.VM) error) error {
	_, err := s.runner.Run(ctx, operation.Op{
		Scope: scope, VMID: id, Name: "delete", Urgent: true, Do: s.power.Delete,
		Skip: func(v vm.VM) (bool, error) { return false, check(v) },
	})
	return err
}
