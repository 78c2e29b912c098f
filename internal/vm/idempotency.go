package vm

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
)

// createdBefore returns the VM that an earlier request with the same key has
// made, if there was one, once it has been made. What that was made of may be gone.
func (s *Service) createdBefore(ctx context.Context, owner string, idem Idempotency) (v VM, found bool, err error) {
	if idem.Key == "" {
		return VM{}, false, nil
	}
	v, found, err = s.deps.Store.VMByKey(ctx, owner, idem, s.settings.Pools.IdempotencyReach)
	if found {
		v, err = s.await(ctx, owner, v.ID, begun)
	}
	if found && errs.Is(err, errs.NotFound) { // it was a copy that failed, of which nothing is left
		return VM{}, false, nil
	}
	return v, found, err
}

// begun is met when a create that was asked for before has ended.
func begun(v VM) (bool, error) {
	if v.State == Failed && v.StartedAt == nil {
		return false, errs.New(errs.Conflict, "vm_failed", "the VM this key was used for has failed: %s", v.StateReason).
			WithHint("delete VM %s, or use another key", v.ID)
	}
	return v.State != Starting, nil
}
