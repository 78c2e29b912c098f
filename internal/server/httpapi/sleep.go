package httpapi

import (
	"cmp"
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

func (d *door) sleepVM(ctx context.Context, in *IDPath) (*answer[api.VM], error) {
	return shown(d.VMs.Sleep(ctx, owner(ctx), in.ID))
}

func (d *door) wakeVM(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(d.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := d.VMs.Wake(ctx, owner(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}
