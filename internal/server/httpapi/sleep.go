package httpapi

import (
	"cmp"
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

const wakersText = `Whoever reaches into it wakes it: a connection to its SSH port, a new command, input or a signal to an earlier one, ` +
	`its files, its console, and a wait for something in its guest. Lists of commands, their output, logs, metrics and events let it sleep.`

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
