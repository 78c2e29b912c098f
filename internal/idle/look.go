package idle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// handle does what is due for one VM, and arms its timer again. Only it changes the
// fields of a timer that is handled, but for what Changed and Quiet set.
func (s *Service) handle(ctx context.Context, t *timer) {
	v, err := s.vms.Get(ctx, access.Everyone, t.id)
	if errs.Is(err, errs.NotFound) {
		s.Gone(t.id)
		s.uses.Forget(t.id)
		return
	}
	if err == nil {
		s.Changed(v) // what is due now is decided for the VM as it is now
	}
	s.mu.Lock()
	seen := *t
	s.mu.Unlock()
	next, now := seen, time.Now()
	switch {
	case err != nil:
		next.postpone(now, now.Add(retryInterval))
	case isDue(seen.expireAt, now):
		if sameExpiry(v.Expiry, seen.expiry) { // else there is a newer one
			next.expireAt = s.expire(ctx, v)
		}
	case !isDue(seen.lookAt, now):
	case !seen.policy.Active(): // it was given up
		s.vms.KeptAwake(ctx, v.ID, "")
		next.retrying, next.lookAt = false, time.Time{}
	case v.State == vm.Running && v.Idle == seen.policy: // else the policy is a newer one
		s.look(ctx, v, &next)
	}
	s.done(t, seen, next)
}

// done stores what handling a timer has led to, but for what has begun anew meanwhile.
func (s *Service) done(t *timer, seen, next timer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.handled = false
	if s.timers[t.id] != t {
		if s.timers[t.id] == nil {
			s.uses.Forget(t.id) // an activity may have been noted after its end
		}
		return
	}
	if t.policy == seen.policy && t.lookAt.Equal(seen.lookAt) {
		t.lookAt, t.window, t.inUse, t.retrying = next.lookAt, next.window, next.inUse, next.retrying
		if t.inUse { // it may have ended before that was known
			if _, goesOn := s.uses.Last(t.id); !goesOn {
				t.inUse, t.lookAt = false, time.Now()
			}
		}
	}
	if sameExpiry(t.expiry, seen.expiry) {
		t.expireAt = next.expireAt
	}
	s.armLocked(t)
}

// expire does what a VM's expiry says, and returns when to try again, zero for never.
func (s *Service) expire(ctx context.Context, v vm.VM) time.Time {
	ctx, cancel := context.WithTimeout(ctx, takeDownTimeout)
	defer cancel()
	err := s.vms.Expire(ctx, v)
	switch {
	case err == nil:
		return time.Time{}
	case busy(err):
		return time.Now().Add(retryInterval)
	}
	s.log.Warn("cannot end a vm whose time has passed", logkey.VM, v.ID, logkey.Error, err)
	return time.Now().Add(firstBackoff)
}

// look takes a VM down if it is idle; else it says in t when to look again.
func (s *Service) look(ctx context.Context, v vm.VM, t *timer) {
	last, inUse := s.uses.Last(v.ID)
	due := last.At.Add(t.policy.Timeout)
	wait := time.Until(due)
	if inUse {
		s.active(ctx, t)
		t.inUse, t.lookAt = true, time.Time{}
		return
	}
	if wait > 0 {
		s.active(ctx, t)
		t.lookAt = due
		// A window that is short says little: an older one is kept for it.
		if wait >= t.policy.Timeout/2 || t.tooOld() {
			if sample, err := s.vms.Sample(ctx, v); err == nil {
				t.window = sample
			}
		}
		return
	}
	sample, err := s.vms.Sample(ctx, v)
	if err == nil {
		if work, ok := t.ownWork(sample); ok {
			s.uses.Note(v.ID, work)
			s.active(ctx, t)
			t.window, t.lookAt = sample, work.At.Add(t.policy.Timeout)
			return
		}
		err = s.takeDown(ctx, t, last, vm.RuleIdle)
	}
	switch now := time.Now(); {
	case err == nil:
		t.lookAt = time.Time{} // Changed has seen that it was taken down
	case errors.Is(err, errUsed):
		t.lookAt = now
	case busy(err):
		t.lookAt = now.Add(retryInterval)
	default:
		t.retrying, t.lookAt = true, now.Add(t.failures.Next())
		s.log.Warn("cannot take an idle vm down", logkey.VM, v.ID, logkey.Error, err, logkey.RetryIn, t.lookAt.Sub(now))
		s.vms.KeptAwake(ctx, v.ID, fmt.Sprintf("running, though idle: it could not %s: %s", verbs[t.policy.Action], errs.Public(err)))
	}
	if sample != (vm.Sample{}) && t.tooOld() {
		t.window = sample
	}
}

// active records that a VM is idle no more.
func (s *Service) active(ctx context.Context, t *timer) {
	t.failures.Reset()
	if t.retrying {
		t.retrying = false
		s.vms.KeptAwake(ctx, t.id, "")
	}
}

var verbs = map[machine.Action]string{machine.ActionSleep: "fall asleep", machine.ActionStop: "be stopped"}

// ownWork returns what the guest does by itself, if that counts as activity.
func (t *timer) ownWork(now vm.Sample) (vm.Activity, bool) {
	work := vm.Activity{At: now.At}
	if now.Guest.KeepAwakeUntil.After(now.At) {
		work.Cause = "keep-awake" // to be looked at again, for a program may take it back
		return work, true
	}
	if now.Guest.Commands > 0 {
		work.Cause = "command"
		return work, true
	}
	span := now.At.Sub(t.window.At)
	if t.window.At.IsZero() || span <= 0 {
		return vm.Activity{}, false
	}
	// Counters that have gone back are those of another process.
	percent := 100 * (now.CPUTime - t.window.CPUTime).Seconds() / span.Seconds()
	if t.policy.CPUPercent > 0 && percent >= float64(t.policy.CPUPercent) {
		work.Cause = "cpu"
		return work, true
	}
	if moved := now.NetworkBytes - t.window.NetworkBytes; t.policy.NetworkBytes > 0 && moved >= t.policy.NetworkBytes {
		work.Cause = "network"
		return work, true
	}
	return vm.Activity{}, false
}

// errUsed says that a VM was used before it could be taken down.
var errUsed = errors.New("the VM was used meanwhile")

// takeDown takes a VM down that was not used since its last activity. One that has an
// operation is not waited for: others are due, too. Errors: errUsed.
func (s *Service) takeDown(ctx context.Context, t *timer, last vm.Activity, rule vm.Rule) error {
	ctx, cancel := context.WithTimeout(ctx, takeDownTimeout)
	defer cancel()
	policy := t.policy
	done, err := s.vms.TakeDown(ctx, t.id, vm.TakeDown{
		Action: policy.Action, Rule: rule, UnusedSince: last.At, NoWait: true,
		Still: func(now vm.VM) bool { return now.State == vm.Running && now.Idle == policy },
		Reason: func(last vm.Activity) string {
			idle := time.Since(last.At).Round(time.Second)
			if rule == vm.RuleMemory {
				return fmt.Sprintf("%s because another VM needs memory; it was idle for %s, the last activity was %s", downAs[policy.Action], idle, last)
			}
			return fmt.Sprintf("%s because it was idle for %s (its policy: %s); the last activity was %s", downAs[policy.Action], idle, policy.Timeout, last)
		},
	})
	if err == nil && !done {
		return errUsed
	}
	return err
}

var downAs = map[machine.Action]string{machine.ActionSleep: "asleep", machine.ActionStop: "stopped"}

// busy reports whether err only says that another operation is in progress.
func busy(err error) bool {
	return errs.HasCode(err, "vm_busy") || errs.HasCode(err, "still_working") || errs.HasCode(err, "starting_up")
}
