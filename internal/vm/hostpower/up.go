package hostpower

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/power"
)

// upAtOnce is how many VMs come back at a time.
const upAtOnce = 4

// Up brings back the VMs that went down with the host, in the background until ctx
// is done; the next hatchd continues. Without Autostart they stay down. Call it
// once, after startup recovery.
func (s *Service) Up(ctx context.Context) error {
	vms, err := s.Store.AllVMs(ctx)
	if err != nil {
		return err
	}
	var down []vm.VM
	for _, v := range vms {
		if v.Autostart != vm.NoAutostart {
			down = append(down, v)
		}
	}
	if !s.Autostart {
		return s.leaveDown(ctx, down)
	}
	s.Runner.Go(func() {
		var each errgroup.Group
		each.SetLimit(upAtOnce)
		for _, v := range down {
			each.Go(func() error {
				if ctx.Err() == nil {
					s.bringBack(context.WithoutCancel(ctx), v)
				}
				return nil
			})
		}
		_ = each.Wait() // failures are stored in the rows
	})
	return nil
}

func (s *Service) leaveDown(ctx context.Context, down []vm.VM) error {
	var failures []error
	for _, v := range down {
		_, err := s.Runner.Update(ctx, v.ID, vm.ToStaying(""))
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// bringBack wakes or starts one VM, unless a request has decided otherwise. The
// row says why that failed.
func (s *Service) bringBack(ctx context.Context, v vm.VM) {
	name, start := "start", s.Power.StartAgain
	if v.Asleep() {
		name, start = "wake", s.Power.WakeAgain
	}
	_, err := s.Runner.Run(ctx, operation.Op{
		Scope: access.Everyone, VMID: v.ID, Name: name,
		Skip: func(v vm.VM) (bool, error) { return v.Autostart == vm.NoAutostart, nil },
		Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
			after, err := start(ctx, v)
			switch {
			case err == nil && v.Autostart == vm.AutostartPaused:
				return s.Power.Pause(ctx, after)
			case err == nil || power.NotBegun(err): // then the next hatchd tries it
				return after, err
			}
			reason := fmt.Sprintf("cannot %s the VM after the restart of the host: %s", name, errs.Public(err))
			_, storeErr := s.Runner.Update(ctx, v.ID, vm.ToStaying(reason))
			return after, errors.Join(err, storeErr)
		},
	})
	if err != nil {
		s.Log.Error("cannot bring back a vm after a restart of the host", logkey.VM, v.ID, logkey.Error, err)
	}
}
