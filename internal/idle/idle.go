// Package idle takes VMs down that are not used, and VMs whose time has passed: it
// has the rule of what counts as activity, and one timer for all VMs.
//
// Uses through hatchd are counted by internal/reach; what a guest does by itself is
// asked for when its VM would be due, and never before: no VM is polled. A VM whose
// owner only reads its status is idle. How a VM is put to sleep is not decided here.
// Start at [Service.Run]; [Service.Evict] is for VMs that need memory.
package idle

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMs are what the service takes down.
type VMs interface {
	Get(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	List(ctx context.Context, scope access.Scope, f vm.Filter) (page []vm.VM, next string, err error)
	// TakeDown puts a VM to sleep or stops it, unless it is used.
	TakeDown(ctx context.Context, id string, d vm.TakeDown) (done bool, err error)
	// KeptAwake stores why a VM that was to be taken down still runs.
	KeptAwake(ctx context.Context, id, reason string)
	// Sample reads what tells whether a guest works by itself.
	Sample(ctx context.Context, v vm.VM) (vm.Sample, error)
	// Expire does what v's expiry says, unless the expiry has changed since.
	Expire(ctx context.Context, v vm.VM) error
}

// Uses count how VMs are used.
type Uses interface {
	// Last returns the last activity, and whether it goes on.
	Last(id string) (last vm.Activity, inUse bool)
	// Note records an activity of the guest's own.
	Note(id string, a vm.Activity)
	// Forget drops what is known about a VM that does not exist any more.
	Forget(id string)
}

const (
	// atOnce is how many VMs are taken down at a time. One that is busy must not hold up others.
	atOnce = 4
	// takeDownTimeout bounds the wait for one VM, whose lock another operation may hold.
	takeDownTimeout = time.Minute
	// retryInterval is the wait before a VM that was busy is looked at again.
	retryInterval = 10 * time.Second
	// firstBackoff and maxBackoff are the waits after a VM that could not be taken down.
	firstBackoff = time.Minute
	maxBackoff   = time.Hour
)

// Service is the rule and its timers.
type Service struct {
	vms  VMs
	uses Uses
	log  *slog.Logger

	rearmed chan struct{} // capacity 1; full when the first timer may be another one

	mu     sync.Mutex
	timers map[string]*timer // by VM id, of VMs that have or had an active policy or an expiry
	due    timers            // those that wait for a time
}

// New returns a service that takes no VM down until Run is called.
func New(vms VMs, uses Uses, log *slog.Logger) *Service {
	return &Service{vms: vms, uses: uses, log: log, rearmed: make(chan struct{}, 1), timers: map[string]*timer{}}
}

// Changed is called after every change of a VM, with the VM as it was then. It is quick.
// A row that is older than another one that was seen is ignored.
func (s *Service) Changed(v vm.VM) {
	policy := v.Idle
	if v.State != vm.Running || !policy.Active() {
		policy = machine.IdlePolicy{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.timers[v.ID]
	if t == nil {
		if !policy.Active() && v.Expiry.At.IsZero() {
			return
		}
		t = &timer{id: v.ID, index: absent}
		s.timers[v.ID] = t
	}
	if v.Revision < t.revision {
		return
	}
	t.revision = v.Revision
	if policy != t.policy {
		if policy.Active() && !t.policy.Active() { // it has just been started, woken, adopted or given a policy
			s.uses.Note(v.ID, vm.Activity{At: time.Now(), Cause: "start"})
		}
		t.policy, t.window, t.lookAt, t.failures = policy, vm.Sample{}, time.Now(), backoff.New(firstBackoff, maxBackoff)
		t.retrying, t.inUse, t.spared = t.retrying && v.State == vm.Running, false, time.Time{}
		if !policy.Active() && !t.retrying {
			t.lookAt = time.Time{}
		}
	}
	if !sameExpiry(v.Expiry, t.expiry) {
		t.expireAt = v.Expiry.At
	}
	t.expiry = v.Expiry
	s.armLocked(t)
}

// Gone is called after a VM was deleted.
func (s *Service) Gone(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.timers[id]; t != nil {
		s.due.remove(t)
		delete(s.timers, id)
	}
}

// Quiet is called when the last use that kept a VM awake has ended.
func (s *Service) Quiet(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.timers[id]; t != nil && t.inUse {
		t.inUse, t.lookAt = false, time.Now()
		s.armLocked(t)
	}
}

// armLocked puts a timer to its place, unless it is being handled.
func (s *Service) armLocked(t *timer) {
	s.due.remove(t)
	if t.handled || t.at().IsZero() {
		return
	}
	heap.Push(&s.due, t)
	if s.due[0] == t {
		select {
		case s.rearmed <- struct{}{}:
		default:
		}
	}
}

// Run takes VMs down until ctx is done, and waits for what is in progress. Call it once,
// after startup recovery: the idle time of every VM begins anew.
func (s *Service) Run(ctx context.Context) {
	s.watchAll(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, atOnce)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.rearmed:
		case <-next.C:
		}
		for t := s.takeDue(); t != nil; t = s.takeDue() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			work.Go(func() {
				defer func() { <-slots }()
				s.handle(ctx, t)
			})
		}
		next.Reset(s.untilNext())
	}
}

// watchAll begins with the VMs that there are. It insists on them: without their timers
// they would run for ever.
func (s *Service) watchAll(ctx context.Context) {
	waits := backoff.New(time.Second, firstBackoff)
	for after := ""; ctx.Err() == nil; {
		page, next, err := s.vms.List(ctx, access.Everyone, vm.Filter{Limit: 1000, After: after})
		if err != nil {
			wait := waits.Next()
			s.log.Error("cannot list the VMs whose idle time begins", logkey.Error, err, logkey.RetryIn, wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue
		}
		for _, v := range page {
			s.Changed(v)
		}
		if after = next; after == "" {
			return
		}
	}
}

// takeDue removes the first timer whose time has come, or returns nil.
func (s *Service) takeDue() *timer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 || s.due[0].at().After(time.Now()) {
		return nil
	}
	t := s.due[0]
	s.due.remove(t)
	t.handled = true
	return t
}

// untilNext returns how long the first timer has to wait, an hour if there is none.
func (s *Service) untilNext() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 {
		return time.Hour
	}
	return max(0, time.Until(s.due[0].at()))
}

// Status is how idle a VM is.
type Status struct {
	Last     vm.Activity // zero: none is known
	InUse    bool
	SleepsAt time.Time // when it is taken down if nothing happens; zero: never, or not known
}

// Status returns how idle a VM is.
func (s *Service) Status(v vm.VM) Status {
	if v.Sleep != nil {
		return Status{Last: v.Sleep.Last}
	}
	var st Status
	if v.State != vm.Running {
		return st
	}
	st.Last, st.InUse = s.uses.Last(v.ID)
	if !v.Idle.Active() || st.InUse || st.Last.At.IsZero() {
		return st
	}
	st.SleepsAt = st.Last.At.Add(v.Idle.Timeout)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.timers[v.ID]; t != nil && t.retrying {
		st.SleepsAt = t.lookAt
	}
	return st
}
