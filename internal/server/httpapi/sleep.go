package httpapi

import (
	"cmp"
	"context"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

const wakersText = `A request through a route, or a connection to its SSH port or a published port, wakes it, and so do a new command, input or a signal to an earlier one, ` +
	`access to its files or console, and a wait for a condition in its guest. Lists of commands, their output, logs, metrics and events do not.`

type sleepInput struct {
	IDPath
	Durable bool `query:"durable" doc:"Answer once the memory is on the host's disk, for up to 10 minutes: until then a power cut loses it. By default the answer comes once the guest is saved in RAM."`
}

// durableTimeout bounds the wait for memory to be on disk.
const durableTimeout = 10 * time.Minute

func (h *vmHandlers) sleep(ctx context.Context, in *sleepInput) (*answer[api.VM], error) {
	v, err := h.vms.Sleep(ctx, scope(ctx), in.ID)
	if err != nil || !in.Durable {
		return shown(v, err)
	}
	ctx, cancel := context.WithTimeout(ctx, durableTimeout)
	defer cancel()
	return shown(h.vms.AwaitDurable(ctx, scope(ctx), in.ID))
}

func (h *vmHandlers) wake(ctx context.Context, in *powerInput) (*answer[api.VM], error) {
	return shown(h.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := h.vms.Wake(ctx, scope(ctx), in.ID)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}
