package vm

import (
	"context"
	"slices"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
)

// turns lets so many go at a time, of all owners. When more want to, the owner
// is next who has the fewest under way.
type turns struct {
	perOwner int             // the most of one owner: others need not wait for an end of these
	ending   <-chan struct{} // once it is closed, nobody goes any more

	mu      sync.Mutex
	free    int
	going   map[string]int // by owner
	waiting []*waiter      // in the order they came
}

type waiter struct {
	owner string
	turn  chan struct{} // closed once it may go
}

func newTurns(atOnce, perOwner int, ending <-chan struct{}) *turns {
	return &turns{free: atOnce, perOwner: perOwner, going: map[string]int{}, ending: ending}
}

var errEnding = errs.New(errs.Unavailable, "shutting_down", "this was not begun: hatchd is shutting down").
	WithHint("try again once hatchd runs again")

// take waits for a turn until ctx is done. done gives it back.
// Errors: errs.Unavailable with code shutting_down.
func (t *turns) take(ctx context.Context, owner string) (done func(), err error) {
	w := t.enter(owner)
	select {
	case <-w.turn:
	case <-t.ending:
	case <-ctx.Done():
		t.leave(w)
		return nil, ctx.Err()
	}
	select {
	case <-t.ending:
		t.leave(w)
		return nil, errEnding
	default:
		return func() { t.leave(w) }, nil
	}
}

func (t *turns) enter(owner string) *waiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := &waiter{owner: owner, turn: make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.letGo()
	return w
}

// leave gives w's turn back, or its place among those that wait.
func (t *turns) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, w); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		return
	}
	t.free++
	if t.going[w.owner]--; t.going[w.owner] == 0 {
		delete(t.going, w.owner)
	}
	t.letGo()
}

// letGo gives away the turns that are free. Precondition: mu is held.
func (t *turns) letGo() {
	for t.free > 0 {
		next, fewest := -1, t.perOwner
		for i, w := range t.waiting {
			if t.going[w.owner] < fewest {
				next, fewest = i, t.going[w.owner]
			}
		}
		if next < 0 {
			return
		}
		w := t.waiting[next]
		t.waiting = slices.Delete(t.waiting, next, next+1)
		t.free--
		t.going[w.owner]++
		close(w.turn)
	}
}
