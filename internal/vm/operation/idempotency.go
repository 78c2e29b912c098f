package operation

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// Earlier returns the VM that an earlier request of the account with the same
// key has made, once its create has ended. What it was made from may be gone.
func (r *Runner) Earlier(ctx context.Context, account string, key vm.Idempotency) (v vm.VM, found bool, err error) {
	if key.Key == "" {
		return vm.VM{}, false, nil
	}
	v, found, err = r.store.VMByKey(ctx, account, key)
	if found {
		v, err = r.Await(ctx, access.Owner(account), v.ID, CreateEnded)
	}
	if found && errs.Is(err, errs.NotFound) { // a clone that failed, and was removed
		return vm.VM{}, false, nil
	}
	return v, found, err
}

// CreateEnded is met when the create of a VM has ended. Errors: errs.Conflict
// with code vm_failed.
func CreateEnded(v vm.VM) (bool, error) {
	if v.State == vm.Failed && v.StartedAt == nil {
		return false, errs.New(errs.Conflict, "vm_failed", "the VM this key was used for has failed: %s", v.StateReason).
			WithHint("delete VM %s, or use another key", v.ID)
	}
	return v.State != vm.Starting, nil
}
