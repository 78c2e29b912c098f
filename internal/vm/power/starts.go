package power

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// How many VMs start at a time, and may wait for it. A VMM must answer in time while
// the guests before it boot, which takes all CPUs there are; so the CPUs bound the
// boots in progress.
const (
	startsPerCPU      = 2
	minStarts         = 4
	maxQueued         = 256 // among them those that start
	maxQueuedOfOne    = 192 // user
	queuedRetryAfter  = 10 * time.Second
	startsForOthers   = 1       // slots that one user leaves free
	queueStep         = "queue" // its name in reasons
	codeTooManyStarts = "too_many_starts"
)

// starts bounds the starts, wakes and clones in progress.
type starts struct {
	slots *operation.Slots
	close func() // lets none begin any more

	mu     sync.Mutex
	queued map[string]int // by user
	all    int
}

func newStarts(cpus int) *starts {
	total := max(minStarts, startsPerCPU*cpus)
	closing := make(chan struct{})
	return &starts{
		slots: operation.NewSlots(total+startsForOthers, total, closing),
		close: sync.OnceFunc(func() { close(closing) }), queued: map[string]int{},
	}
}

// admit lets a start of a user wait for its turn, until leave is called.
type admit func(user string) (leave func(), err error)

// unbounded admits any number.
func unbounded(string) (leave func(), err error) { return func() {}, nil }

// StartAgain is Start for a VM that was up before: it may wait however many others do.
func (s *Service) StartAgain(ctx context.Context, v vm.VM) (vm.VM, error) {
	return s.startQueued(ctx, v, unbounded)
}

// Queue admits a start, before anything is stored for it. The caller must call leave
// when the start has ended.
// Errors: errs.Unavailable with code too_many_starts, or errs.TooMany if all of them
// are the user's.
func (s *Service) Queue(user string) (leave func(), err error) {
	q := s.starts
	q.mu.Lock()
	defer q.mu.Unlock()
	full := errs.New(errs.Unavailable, codeTooManyStarts, "cannot start a VM: too many VMs wait to start").
		WithHint("try again later, with fewer requests at a time").WithRetryAfter(queuedRetryAfter)
	switch {
	case q.queued[user] >= maxQueuedOfOne:
		full.Kind, full.Message = errs.TooMany, "cannot start a VM: too many of the user's VMs wait to start"
		return nil, full
	case q.all >= maxQueued:
		return nil, full
	}
	q.add(user, 1)
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.add(user, -1)
	}), nil
}

func (q *starts) add(user string, n int) {
	q.all += n
	if q.queued[user] += n; q.queued[user] == 0 {
		delete(q.queued, user)
	}
}

// AcquireStart waits until another VM of the user may start. The caller must call
// release once the CPUs are not needed any more.
// Errors: errs.Unavailable with code host_shutting_down; ctx's.
func (s *Service) AcquireStart(ctx context.Context, user string) (release func(), err error) {
	release, err = s.starts.slots.Acquire(ctx, user)
	if err == nil {
		return release, nil
	}
	if closed := s.Capacity.CheckOpen(); closed != nil {
		return nil, closed
	}
	return nil, fmt.Errorf("cannot start the VM: %w", err)
}

// Boot starts the machine of a VM whose lease is whole, when the host has CPUs for
// another boot. A failure is stored. If hatchd ends before, the next one starts the VM.
func (s *Service) Boot(ctx context.Context, v vm.VM) (vm.VM, error) {
	release, err := s.AcquireStart(ctx, v.OwnerID)
	if NotBegun(err) && v.OwnerID != access.SystemID {
		_, storeErr := s.Runner.Update(ctx, v.ID, func(v *vm.VM) {
			vm.ToStopped("")(v)
			vm.ToReturning("hatchd ended before the VM could start; the next one starts it")(v)
		})
		return vm.VM{}, errors.Join(err, storeErr)
	}
	if err != nil {
		notBegun := &transition.Run{VM: v, Fresh: !v.Provisioned}
		return s.FailStart(ctx, notBegun, &transition.StepError{Step: queueStep, Err: err})
	}
	after, m, err := s.boot(ctx, v)
	if err != nil {
		release()
		return after, err
	}
	s.releaseWhenUp(v.ID, m, release)
	return after, nil
}

// CloseStarts ends the wait of all starts that have not begun, for good: hatchd is ending.
func (s *Service) CloseStarts() { s.starts.close() }

// NotBegun reports whether an error says that a start did not begin because hatchd, or
// the host, is ending. The next hatchd may begin it.
func NotBegun(err error) bool {
	return errs.HasCode(err, "host_shutting_down") || errs.HasCode(err, "shutting_down")
}

// releaseWhenUp calls release, in the background, once the guest of a VM that was just
// booted needs its CPUs less.
func (s *Service) releaseWhenUp(id string, m *live.Machine, release func()) {
	if s.BootTime == 0 {
		release()
		return
	}
	s.Runner.Go(func() {
		defer release()
		ctx, cancel := context.WithTimeout(context.Background(), s.BootTime)
		defer cancel()
		for {
			changed := s.Runner.Changed(id)
			v, err := s.Store.VM(ctx, access.Everyone, id)
			if err != nil || v.State != vm.Running || v.Conditions.Agent.Status == vm.True || v.Conditions.Agent.Status == vm.False {
				return
			}
			select {
			case <-changed:
			case <-m.Exited():
				return
			case <-s.Runner.Closing():
				return
			case <-ctx.Done():
				return
			}
		}
	})
}
