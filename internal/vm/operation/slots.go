package operation

import (
	"context"
	"slices"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
)

// Slots bounds how many pieces of one kind of work run at a time, over all
// users. When more wait, the user with the fewest running is next.
type Slots struct {
	perUser int             // at most for one user: others need not wait for it
	closing <-chan struct{} // once closed, no work begins

	mu      sync.Mutex
	free    int
	running map[string]int // by user
	waiting []*waiter      // in order of arrival
}

type waiter struct {
	user    string
	granted chan struct{} // closed once it has a slot
}

// NewSlots returns as many slots as total, at most perUser for one user.
func NewSlots(total, perUser int, closing <-chan struct{}) *Slots {
	return &Slots{free: total, perUser: perUser, running: map[string]int{}, closing: closing}
}

var errClosing = errs.New(errs.Unavailable, "shutting_down", "the operation did not begin: hatchd is shutting down").
	WithHint("try again once hatchd runs again")

// Acquire waits for a slot until ctx is done.
// Errors: ctx's; errs.Unavailable with code shutting_down.
func (s *Slots) Acquire(ctx context.Context, user string) (release func(), err error) {
	w := s.enqueue(user)
	select {
	case <-w.granted:
	case <-s.closing:
	case <-ctx.Done():
		s.leave(w)
		return nil, ctx.Err()
	}
	select {
	case <-s.closing:
		s.leave(w)
		return nil, errClosing
	default:
		return func() { s.leave(w) }, nil
	}
}

func (s *Slots) enqueue(user string) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &waiter{user: user, granted: make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.grantLocked()
	return w
}

// leave gives back w's slot, or its place in the queue.
func (s *Slots) leave(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, w); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return
	}
	s.free++
	if s.running[w.user]--; s.running[w.user] == 0 {
		delete(s.running, w.user)
	}
	s.grantLocked()
}

// grantLocked gives free slots to waiters.
func (s *Slots) grantLocked() {
	for s.free > 0 {
		next, fewest := -1, s.perUser
		for i, w := range s.waiting {
			if s.running[w.user] < fewest {
				next, fewest = i, s.running[w.user]
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.free--
		s.running[w.user]++
		close(w.granted)
	}
}
