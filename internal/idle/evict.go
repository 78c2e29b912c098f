package idle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const (
	// evictAfter is how long a VM must have been idle to be put to sleep for another.
	evictAfter = 10 * time.Second
	// maxEvictions is how many VMs one call tries to put to sleep, at most.
	maxEvictions = 8
)

// candidate is a VM that may be put to sleep for another.
type candidate struct {
	timer // as it was; not in the heap
	last  vm.Activity
}

// Evict puts the VM to sleep that has been idle for longest, of those in scope whose policy is
// sleep and that are not in use, and reports whether there was one. A VM with an operation
// in progress is none: that may be the caller's own, or need memory, too. Nor is one that
// could not fall asleep lately. Errors: those of ctx.
func (s *Service) Evict(ctx context.Context, scope access.Scope) (evicted bool, err error) {
	tried := 0
	for _, c := range s.candidates() {
		idle, err := s.isIdle(ctx, scope, &c)
		if idle && err == nil {
			if err = s.takeDown(ctx, &c.timer, c.last, vm.RuleMemory); err == nil {
				return true, nil
			}
			tried++
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		s.log.Debug("an idle vm was not put to sleep for another", logkey.VM, c.id, logkey.Error, err)
		if err != nil && !busy(err) && !errors.Is(err, errUsed) {
			s.spare(c.id)
		}
		if tried == maxEvictions {
			break
		}
	}
	return false, nil
}

// candidates returns the VMs that may be idle, the one that was used last at the end.
func (s *Service) candidates() (all []candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, t := range s.timers {
		if t.policy.Action != machine.ActionSleep || t.handled || t.retrying || t.spared.After(now) {
			continue
		}
		if last, inUse := s.uses.Last(id); !inUse && now.Sub(last.At) >= evictAfter {
			all = append(all, candidate{*t, last})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return a.last.At.Compare(b.last.At) })
	return all
}

// isIdle reports whether a candidate is in scope and its guest does nothing by itself. What it does
// counts as activity.
func (s *Service) isIdle(ctx context.Context, scope access.Scope, c *candidate) (bool, error) {
	v, err := s.vms.Get(ctx, access.Everyone, c.id)
	if err != nil || !scope.Sees(v.OwnerID) || v.State != vm.Running || v.Idle != c.policy {
		return false, err
	}
	sample, err := s.vms.Sample(ctx, v)
	if err != nil {
		return false, err
	}
	work, works := c.ownWork(sample)
	if !works {
		return true, nil
	}
	s.uses.Note(c.id, work)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timers[c.id] == nil { // it was deleted meanwhile
		s.uses.Forget(c.id)
	}
	return false, nil
}

// spare keeps a VM that could not fall asleep from being tried again at once, before
// others.
func (s *Service) spare(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.timers[id]; t != nil {
		t.spared = time.Now().Add(firstBackoff)
	}
}
