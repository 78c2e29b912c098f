package idle

import (
	"container/heap"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// timer is when one VM is looked at next.
type timer struct {
	id       string
	revision int64 // of the newest row that was seen

	policy machine.IdlePolicy // zero unless the VM runs and may be taken down
	lookAt time.Time          // whether it is idle; zero: not before something happens
	window vm.Sample          // begins the time over which the guest's own work is counted; zero: not read yet

	expiry   machine.Expiry
	expireAt time.Time // later than the expiry's after a failure; zero: never

	inUse    bool // a use ends first; see Quiet
	retrying bool // it could not be taken down, and its row says so
	failures *backoff.Backoff
	spared   time.Time // until then it is not put to sleep for another VM

	handled bool // it is being looked at, and not in the heap
	index   int  // in the heap
}

const absent = -1

// at returns when the timer is due, zero for never.
func (t *timer) at() time.Time {
	if t.lookAt.IsZero() || !t.expireAt.IsZero() && t.expireAt.Before(t.lookAt) {
		return t.expireAt
	}
	return t.lookAt
}

// isDue reports whether a time that may be zero, for never, has come.
func isDue(at, now time.Time) bool { return !at.IsZero() && !at.After(now) }

// sameExpiry reports whether two expiries end a VM at the same time in the same way.
func sameExpiry(a, b machine.Expiry) bool { return a.At.Equal(b.At) && a.Action == b.Action }

// postpone moves what is due now.
func (t *timer) postpone(now, until time.Time) {
	for _, at := range []*time.Time{&t.lookAt, &t.expireAt} {
		if isDue(*at, now) {
			*at = until
		}
	}
}

// tooOld reports whether the window would tell too much of the past when it is looked at.
func (t *timer) tooOld() bool { return t.lookAt.Sub(t.window.At) > 3*t.policy.Timeout/2 }

// timers is a heap, the first to be due on top.
type timers []*timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at().Before(h[j].at()) }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *timers) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}

// Pop implements heap.Interface.
func (h *timers) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	t.index = absent
	return t
}

// remove takes a timer out, if it is in.
func (h *timers) remove(t *timer) {
	if t.index != absent {
		heap.Remove(h, t.index)
	}
}
