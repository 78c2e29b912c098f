package lifecycle

import (
	"context"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/clone"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

// Create makes and starts a VM, and returns it once it runs. When ctx ends
// before that, the VM is returned as it was stored, with errs.TimedOut and
// code still_working, and continues to start. A create that fails leaves a row in
// state error with the reason, and nothing else; its error has the VM's id.
//
// Errors: errs.Invalid names the field; errs.Conflict for what is taken;
// errs.Exhausted when the host is full; errs.Unavailable with code too_many_starts.
func (s *Service) Create(ctx context.Context, ownerID string, req vm.CreateRequest) (vm.VM, error) {
	v, err := s.resolve(ctx, ownerID, req)
	if err != nil {
		return vm.VM{}, err
	}
	return s.create(ctx, v, req, s.StartNew)
}

// create stores a resolved VM and starts it by start.
func (s *Service) create(ctx context.Context, v vm.VM, req vm.CreateRequest, start operation.Func) (vm.VM, error) {
	began := time.Now()
	leave, err := s.power.Queue(v.OwnerID)
	if err != nil {
		return vm.VM{}, err
	}
	// The lock is taken before the row can be seen, so that no operation runs on
	// a VM that is half made. The id is new: the lock is free.
	unlock, err := s.runner.Lock(ctx, v.ID)
	if err != nil {
		leave()
		return vm.VM{}, err
	}
	end := func() { unlock(); leave() }
	var stored vm.VM
	want := network.Request{Address: req.Address, MAC: req.MAC}
	// A client that leaves must not make it unclear whether the row was stored: then no
	// operation would begin on it.
	storing := context.WithoutCancel(ctx)
	err = s.capacity.Reserve(storing, v.OwnerID, func(limit vm.Capacity) error {
		stored, err = s.deps.Store.CreateVM(storing, v, want, s.settings.Pools, limit)
		return err
	})
	if errs.HasCode(err, errs.DatabaseUnavailable) {
		s.power.ForgetUnstored([]string{v.ID}, end)
		return vm.VM{}, err
	}
	if err != nil {
		end()
		return vm.VM{}, err
	}
	reserved := vm.Step{Name: "reserve", Took: time.Since(began)}
	v, err = operation.Detach(ctx, s.runner, func(ctx context.Context) (vm.VM, error) {
		defer end()
		return s.runner.Record(ctx, stored, "create", start)
	})
	if errs.HasCode(err, "still_working") {
		return stored, err // so that the caller learns its id
	}
	v.Took = append([]vm.Step{reserved}, v.Took...)
	return v, err
}

// AwaitCreated returns a VM that an earlier request has made, once that has ended.
// Errors: errs.Conflict with code vm_failed; errs.NotFound; errs.Unavailable with code
// wait_timeout when ctx ends first.
func (s *Service) AwaitCreated(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return s.runner.Await(ctx, scope, id, func(v vm.VM) (bool, error) {
		if v.State == vm.Failed && v.StartedAt == nil {
			return false, errs.New(errs.Conflict, "vm_failed", "the VM this key was used for has failed: %s", v.StateReason).
				WithHint("delete VM %s, or use another key", v.ID).WithVM(v.ID)
		}
		return v.State != vm.Starting, nil
	})
}

// CreateOfShape makes a VM of hatchd's own user for the warm pool, by booting,
// and returns it once it runs. With an error it returns its id: what a failed create
// leaves can be deleted. Errors: as Create's.
func (s *Service) CreateOfShape(ctx context.Context, shape vm.Shape) (vm.VM, error) {
	draft := clone.OfShape(shape)
	v, err := s.create(ctx, draft, vm.CreateRequest{}, s.power.Boot)
	v.ID = draft.ID
	return v, err
}

// Idle reports whether no VM is being created, started or woken, and no guest is on
// its way to be ready. It also returns a channel that is closed at the next change of a
// VM; a guest that does not become ready stops counting without one.
func (s *Service) Idle(ctx context.Context) (idle bool, changed <-chan struct{}, err error) {
	changed = s.runner.AnyChanged()
	now := time.Now()
	for _, state := range []vm.State{vm.Starting, vm.Running} {
		var vms []vm.VM
		if vms, _, err = s.deps.Store.VMs(ctx, access.Everyone, vm.Filter{State: state}); err != nil {
			return false, changed, err
		}
		if slices.ContainsFunc(vms, func(v vm.VM) bool { return v.ComesUp(now) }) {
			return false, changed, nil
		}
	}
	return true, changed, nil
}

// ShapeFor returns the shape of the VM that a request asks for. Errors: Create's.
func (s *Service) ShapeFor(ctx context.Context, ownerID string, req vm.CreateRequest) (vm.Shape, error) {
	v, err := s.resolve(ctx, ownerID, req)
	if err != nil {
		return vm.Shape{}, err
	}
	return s.Shape(ctx, v)
}
