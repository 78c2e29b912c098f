package power

import (
	"context"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

const (
	// wakeBackoff is how long a VM that did not wake is not tried again on demand.
	wakeBackoff = 30 * time.Second
	// maxWakeFailures is after how many failed wakes in a row a VM is not tried again on
	// demand at all, but only on request, or by another hatchd.
	maxWakeFailures = 3
)

// WakeOnDemand wakes a sleeping VM for an unauthenticated caller that wants to
// reach it, such as an SSH connection. It returns at once when the VM runs; see
// WakeIfAsleep for the rest.
func (s *Service) WakeOnDemand(ctx context.Context, id string) error {
	if s.Live.Holds(id) {
		return nil
	}
	v, err := s.Store.VM(ctx, access.Everyone, id)
	if err != nil || !v.Asleep() {
		return err
	}
	return s.WakeIfAsleep(ctx, id)
}

// WakeIfAsleep wakes a VM if it sleeps, after any sleep or wake in progress. After
// a failed wake it returns the same error, without an attempt or an event, until
// wakeBackoff has passed; after maxWakeFailures always, as errs.Conflict with code
// wake_suspended.
//
// Unlike the other functions of power it takes the VM's lock itself.
func (s *Service) WakeIfAsleep(ctx context.Context, id string) error {
	_, err := s.Runner.Run(ctx, operation.Op{
		Scope: access.Everyone, VMID: id, Name: "wake",
		Skip: func(v vm.VM) (bool, error) {
			if !v.Asleep() {
				return true, nil
			}
			return false, s.wakes.refusal(id)
		},
		Do: func(ctx context.Context, v vm.VM) (vm.VM, error) {
			after, err := s.Wake(ctx, v)
			if err != nil && s.wakes.failed(id, err) {
				reason := vm.ToAsleepBecause(suspended(id, err).Message)
				if _, err := s.Runner.Update(ctx, id, reason); err != nil {
					s.Log.Error("cannot store that a vm is not woken any more", logkey.VM, id, logkey.Error, err)
				}
				s.Runner.Append(ctx, v, vm.WakeSuspendedEvent(maxWakeFailures, err))
			}
			return after, err
		},
	})
	return err
}

// wakeFailures are the last failed wakes on demand, by VM id.
type wakeFailures struct {
	mu sync.Mutex
	by map[string]wakeFailure // of VMs that have not been woken since
}

type wakeFailure struct {
	at    time.Time
	err   error
	times int // in a row, of those that are the VM's own
}

func newWakeFailures() *wakeFailures { return &wakeFailures{by: map[string]wakeFailure{}} }

// refusal returns why a VM is not tried now: the last error, if it is younger than
// wakeBackoff, or that it has failed too often.
func (w *wakeFailures) refusal(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, ok := w.by[id]
	switch {
	case !ok:
		return nil
	case last.times >= maxWakeFailures:
		return suspended(id, last.err)
	case time.Since(last.at) < wakeBackoff:
		return last.err
	}
	return nil
}

// suspended is the error of a VM that has failed to wake too often.
func suspended(id string, last error) *errs.Error {
	return errs.New(errs.Conflict, "wake_suspended", "asleep; it could not be woken %d times and is not tried again by itself: %s", maxWakeFailures, errs.Public(last)).
		WithHint("its files are as they were; try again with hatch wake %s, or boot it with hatch start %s, which loses its memory", id, id).WithVM(id).WithCause(last)
}

// failed records a failed wake, and reports whether the VM has now failed too often. That
// the host lacks something, or is busy, or its owner has used up a quota, is not the VM's
// fault.
func (w *wakeFailures) failed(id string, err error) (suspended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := wakeFailure{time.Now(), err, w.by[id].times}
	if !errs.Is(err, errs.Exhausted) && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.TimedOut) && !errs.HasCode(err, quota.Code) {
		f.times++
	}
	w.by[id] = f
	return f.times == maxWakeFailures
}

// resumed forgets the failures of a VM that runs, and tells if they were too many.
func (w *wakeFailures) resumed(ctx context.Context, v vm.VM, told *operation.Runner) {
	if w.forget(v.ID) >= maxWakeFailures {
		told.Append(ctx, v, vm.WakeResumedEvent())
	}
}

// forget forgets the failures of a VM that runs, or is gone, and returns how many they were.
func (w *wakeFailures) forget(id string) (times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	times = w.by[id].times
	delete(w.by, id)
	return times
}
