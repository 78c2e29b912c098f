package idle

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	s.mu.Lock()
	seen := *t
	s.mu.Unlock()
	next := seen
	v, err := s.vms.Get(ctx, access.Everyone, t.id)
	switch {
	case errs.Is(err, errs.NotFound):
		s.Gone(t.id)
		return
	case err != nil:
		next.lookAt = time.Now().Add(retryInterval)
	case !seen.expireAt.IsZero() && !seen.expireAt.After(time.Now()):
		next.expireAt = s.expire(ctx, v, &next)
	default:
		s.look(ctx, v, &next)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.handled = false
	if s.timers[t.id] != t {
		return
	}
	if t.policy == seen.policy && t.lookAt.Equal(seen.lookAt) { // else Changed has begun anew
		t.lookAt, t.window, t.inUse, t.retrying = next.lookAt, next.window, next.inUse, next.retrying
		if t.inUse { // it may have ended before that was known
			if _, goesOn := s.uses.Last(t.id); !goesOn {
				t.inUse, t.lookAt = false, time.Now()
			}
		}
	}
	if t.expiry == seen.expiry {
		t.expireAt = next.expireAt
	}
	s.armLocked(t)
}

// expire does what a VM's expiry says, and returns when to try again, zero for never.
func (s *Service) expire(ctx context.Context, v vm.VM, t *timer) time.Time {
	if !v.Expiry.At.Equal(t.expiry.At) {
		return time.Time{} // Changed sets another time
	}
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
	now := time.Now()
	due := last.At.Add(t.policy.Timeout)
	if t.retrying && due.After(now) { // it is idle no more
		s.vms.KeptAwake(ctx, v.ID, "")
	}
	if inUse {
		t.inUse, t.lookAt, t.retrying = true, time.Time{}, false
		return
	}
	if wait := due.Sub(now); wait > 0 {
		// A window that is short says little: an older one is kept for it.
		if t.window.At.IsZero() || wait >= t.policy.Timeout/2 {
			if sample, err := s.vms.Sample(ctx, v); err == nil {
				t.window = sample
			}
		}
		t.lookAt, t.retrying = due, false
		return
	}
	sample, err := s.vms.Sample(ctx, v)
	if err == nil {
		if work, ok := s.ownWork(t, sample); ok {
			s.uses.Note(v.ID, work)
			t.window, t.lookAt, t.retrying = sample, work.At.Add(t.policy.Timeout), false
			return
		}
		err = s.takeDown(ctx, v, last, vm.RuleIdle, t.policy.Action)
	}
	switch {
	case err == nil, errors.Is(err, errUsed):
		t.lookAt = now // Changed removes the timer of a VM that was taken down
		if err == nil {
			t.lookAt = time.Time{}
		}
	case busy(err):
		t.lookAt = now.Add(retryInterval)
	default:
		t.retrying, t.lookAt = true, now.Add(t.failures.Next())
		s.log.Warn("cannot take an idle vm down", logkey.VM, v.ID, logkey.Error, err, logkey.RetryIn, t.lookAt.Sub(now))
		s.vms.KeptAwake(ctx, v.ID, fmt.Sprintf("running, though idle: it could not %s: %s", verbs[t.policy.Action], errs.Public(err)))
	}
}

var verbs = map[machine.Action]string{machine.ActionSleep: "fall asleep", machine.ActionStop: "be stopped"}

// ownWork returns what the guest does by itself, if that counts as activity.
func (s *Service) ownWork(t *timer, now vm.Sample) (vm.Activity, bool) {
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

// takeDown takes a VM down that was not used since its last activity. Errors: errUsed.
func (s *Service) takeDown(ctx context.Context, v vm.VM, last vm.Activity, rule vm.Rule, action machine.Action) error {
	ctx, cancel := context.WithTimeout(ctx, takeDownTimeout)
	defer cancel()
	done, err := s.vms.TakeDown(ctx, v.ID, vm.TakeDown{
		Action: action, Rule: rule, UnusedSince: last.At, NoWait: rule == vm.RuleMemory,
		Still: func(now vm.VM) bool { return now.State == vm.Running && now.Idle == v.Idle },
		Reason: func(last vm.Activity) string {
			idle := time.Since(last.At).Round(time.Second)
			if rule == vm.RuleMemory {
				return fmt.Sprintf("%s because another VM needs memory; it was idle for %s, the last activity was %s", downAs[action], idle, last)
			}
			return fmt.Sprintf("%s because it was idle for %s (its policy: %s); the last activity was %s", downAs[action], idle, v.Idle.Timeout, last)
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

// Limits of Evict.
const (
	// evictAfter is how long a VM must have been idle to be put to sleep for another.
	evictAfter = 10 * time.Second
	// maxEvictions is how many VMs are asked, at most.
	maxEvictions = 8
)

// Evict puts the VM to sleep that has been idle for longest, of those whose policy is
// sleep and that are not in use, and reports whether there was one. A VM with an operation
// in progress is none: that may be the caller's own, or need memory, too. Errors: those of ctx.
func (s *Service) Evict(ctx context.Context) (evicted bool, err error) {
	type candidate struct {
		id   string
		last vm.Activity
	}
	var all []candidate
	s.mu.Lock()
	for id, t := range s.timers {
		if last, inUse := s.uses.Last(id); t.policy.Action == machine.ActionSleep && !t.handled && !inUse && time.Since(last.At) >= evictAfter {
			all = append(all, candidate{id, last})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b candidate) int { return a.last.At.Compare(b.last.At) })
	for _, c := range all[:min(len(all), maxEvictions)] {
		v, err := s.vms.Get(ctx, access.Everyone, c.id)
		var sample vm.Sample
		if err == nil {
			sample, err = s.vms.Sample(ctx, v)
		}
		if err == nil && sample.Guest.Commands == 0 && !sample.Guest.KeepAwakeUntil.After(sample.At) {
			if err = s.takeDown(ctx, v, c.last, vm.RuleMemory, machine.ActionSleep); err == nil {
				return true, nil
			}
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		s.log.Debug("an idle vm was not put to sleep for another", logkey.VM, c.id, logkey.Error, err)
	}
	return false, nil
}
