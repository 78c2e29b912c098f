package lifecycle

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

// TakeDown puts a running VM to sleep or stops it because of a rule, and reports whether
// it has done so. It does nothing to a VM that is in use, or was after d.UnusedSince, or of
// which d.Still is not true any more: that is decided under its lock, and in one step with
// those who arrive. They wait until it is done, and wake a VM that sleeps then.
// Errors: those of power.Service.Sleep and Stop; errs.TimedOut with code vm_busy, with
// d.NoWait at once: a request that needs memory holds the lock of its VM.
func (s *Service) TakeDown(ctx context.Context, id string, d vm.TakeDown) (done bool, err error) {
	var why vm.Down
	var decided func()
	var did atomic.Bool // the operation may outlive this call
	op := operation.Op{Scope: access.Everyone, VMID: id, Name: string(d.Action), NoWait: d.NoWait}
	op.Skip = func(v vm.VM) (skip bool, err error) {
		if !d.Still(v) {
			return true, nil
		}
		why = vm.Down{Rule: d.Rule}
		if d.UnusedSince.IsZero() {
			why.Last, decided = s.reach.FallAsleep(id)
		} else {
			why.Last, decided = s.reach.FallAsleepIfIdle(id, d.UnusedSince)
		}
		return decided == nil, nil
	}
	op.Do = func(ctx context.Context, v vm.VM) (vm.VM, error) {
		defer decided()
		why.Reason = d.Reason(why.Last)
		var err error
		if d.Action == machine.ActionStop {
			v, err = s.power.StopWithin(ctx, v, s.power.StopTimeout, why.Reason)
		} else {
			v, err = s.power.SleepBecause(ctx, v, why)
		}
		did.Store(err == nil)
		return v, err
	}
	_, err = s.runner.Run(byRule(ctx, d.Rule), op)
	return did.Load(), err
}

// byRule returns a context whose changes are made because of a rule.
func byRule(ctx context.Context, rule vm.Rule) context.Context {
	return event.WithCause(ctx, event.Cause{Actor: event.Actor{Kind: event.Rule, Name: string(rule)}})
}

// KeptAwake stores why a VM that was to be taken down still runs.
func (s *Service) KeptAwake(ctx context.Context, id, reason string) {
	v, err := s.deps.Store.VM(ctx, access.Everyone, id)
	if err == nil && v.State == vm.Running && v.StateReason != reason {
		_, err = s.runner.Update(ctx, id, vm.ToKeptAwake(reason))
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		s.deps.Log.Error("cannot store why a vm still runs", logkey.VM, id, logkey.Error, err)
	}
}

// Sample reads what tells whether the guest of a running VM works by itself. An agent
// that does not answer tells nothing. Errors: errs.Conflict with code vm_not_running.
func (s *Service) Sample(ctx context.Context, v vm.VM) (vm.Sample, error) {
	m, err := s.live.Get(ctx, v, live.Held)
	if err != nil {
		return vm.Sample{}, err
	}
	if m == nil {
		return vm.Sample{}, errs.New(errs.Conflict, "vm_not_running", "VM %s has no machine", v.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	stats, err := m.Stats(ctx)
	if err != nil {
		return vm.Sample{}, err
	}
	sample := vm.Sample{At: time.Now(), CPUTime: stats.CPUTime}
	if v.EnableNetwork {
		traffic, err := s.deps.Network.Traffic(ctx, v.Link())
		if err != nil {
			return vm.Sample{}, err
		}
		sample.NetworkBytes = int64(traffic.RxBytes + traffic.TxBytes)
	}
	if sample.Guest, err = m.Guest.Activity(ctx); err != nil {
		s.deps.Log.Debug("a guest does not report its activity", logkey.VM, v.ID, logkey.Error, err)
	}
	return sample, nil
}

// Expire does what a VM's expiry says, whether the VM is used or not, takes the expiry
// away and tells of it. It does nothing once the expiry is another one. A VM that is down
// already stays as it is, but for one that sleeps and is to be stopped.
// Errors: those of the operation; errs.TimedOut with code vm_busy if the VM could not be
// taken down in the state that it is in.
func (s *Service) Expire(ctx context.Context, v vm.VM) error {
	ctx = byRule(ctx, vm.RuleExpiry)
	still := func(now vm.VM) bool { return now.Expiry == v.Expiry }
	if v.Expiry.Action == machine.ActionDelete {
		_, err := s.runner.Run(ctx, operation.Op{
			Scope: access.Everyone, VMID: v.ID, Name: "delete",
			Skip: func(now vm.VM) (bool, error) { return !still(now), nil },
			Do: func(ctx context.Context, now vm.VM) (vm.VM, error) {
				after, err := s.power.Delete(ctx, now)
				if err == nil {
					s.runner.Append(ctx, v, vm.ExpiredEvent(v))
				}
				return after, err
			},
		})
		return err
	}
	done, err := s.TakeDown(ctx, v.ID, vm.TakeDown{
		Action: v.Expiry.Action, Rule: vm.RuleExpiry,
		Still: func(now vm.VM) bool { return still(now) && !isDown(now, v.Expiry.Action) },
		Reason: func(vm.Activity) string {
			return "its time has passed: it expired at " + v.Expiry.At.UTC().Format(time.RFC3339)
		},
	})
	if err != nil {
		return err
	}
	return s.dropExpiry(ctx, v, func(now vm.VM) (drop bool, err error) {
		if still(now) && !done && !isDown(now, v.Expiry.Action) {
			return false, errs.New(errs.TimedOut, "vm_busy", "VM %s has begun to run meanwhile", v.ID)
		}
		return still(now), nil
	})
}

// isDown reports whether a VM is as an expiry wants it, or can be brought down no further.
func isDown(v vm.VM, by machine.Action) bool {
	asleep := v.State == vm.Snapshotted && by == machine.ActionSleep
	return asleep || v.State == vm.Stopped || v.State == vm.Failed
}

// dropExpiry takes the expiry of a VM away that has had its effect, and tells of it.
func (s *Service) dropExpiry(ctx context.Context, v vm.VM, due func(now vm.VM) (bool, error)) error {
	dropped := false
	after, err := s.deps.Store.ReviseVM(ctx, access.Everyone, v.ID, s.settings.Pools, func(now *vm.VM) (err error) {
		if dropped, err = due(*now); dropped {
			now.Expiry.At = time.Time{}
		}
		return err
	})
	if err != nil {
		return err
	}
	s.runner.Revised(after)
	if dropped {
		s.runner.Append(ctx, v, vm.ExpiredEvent(v))
	}
	return nil
}

// Watcher is told what happens to VMs. Its methods are quick.
type Watcher interface {
	Changed(v vm.VM)
	Gone(id string)
	// Quiet is called when the last use that kept a VM awake has ended.
	Quiet(id string)
}

// Watch sets who is told. Call it before Recover.
func (s *Service) Watch(w Watcher) {
	s.runner.Watch(w.Changed, func(id string) {
		w.Gone(id)
		s.reach.Forget(id)
	})
	s.reach.OnQuiet(w.Quiet)
}
