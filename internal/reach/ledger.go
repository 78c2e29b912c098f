package reach

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// Use is one use of a VM that has not been released.
type Use struct {
	Cause Cause
	Peer  string // see PeerOf
	Since time.Time

	passive bool          // it only looks at what there is: it keeps no VM awake
	moved   *atomic.Int64 // of a connection that outlives a sleep: when its last byte was moved, in Unix nanoseconds
}

type peerKey struct{}

// WithPeer returns a context that carries who uses a VM, for those who look at its uses
// later: an address, or the name of a route and an address.
func WithPeer(ctx context.Context, peer string) context.Context {
	return context.WithValue(ctx, peerKey{}, peer)
}

// PeerOf returns who uses a VM: what WithPeer has set, else the API key of the request,
// or the user or local process that has sent it.
func PeerOf(ctx context.Context) string {
	if peer, ok := ctx.Value(peerKey{}).(string); ok {
		return peer
	}
	switch actor := event.CauseOf(ctx).Actor; actor.Kind {
	case event.Key:
		return "key " + cmp.Or(actor.Name, actor.ID)
	case event.User:
		return "user " + actor.Name
	case event.Local:
		return actor.Name
	}
	return ""
}

// ledger is what is known about the use of one VM.
type ledger struct {
	uses    map[*Use]struct{}
	last    vm.Activity   // the newest that has ended; zero for none
	falling chan struct{} // closed when the sleep in progress has ended; nil without one
	sleeps  int           // how often the VM has begun to fall asleep
}

// activity returns what the use tells at this moment, and whether it keeps the VM awake by itself.
func (u *Use) activity() (a vm.Activity, holds bool) {
	a = vm.Activity{At: time.Now(), Cause: string(u.Cause), Peer: u.Peer}
	switch {
	case u.passive:
		return vm.Activity{}, false
	case u.moved != nil:
		a.At = time.Unix(0, u.moved.Load())
		return a, false
	default:
		return a, true
	}
}

// now returns the last activity, and whether there is a use that keeps the VM awake.
func (l *ledger) now() (last vm.Activity, inUse bool) {
	last = l.last
	for use := range l.uses {
		a, holds := use.activity()
		inUse = inUse || holds
		if a.At.After(last.At) {
			last = a
		}
	}
	return last, inUse
}

func (r *Reach) ledgerLocked(id string) *ledger {
	if r.ledgers[id] == nil {
		r.ledgers[id] = &ledger{uses: map[*Use]struct{}{}}
	}
	return r.ledgers[id]
}

// begin counts a use until end is called, the first time. An end that is not of a use
// that took place, such as a failed one, is no activity.
func (r *Reach) begin(ctx context.Context, id string, use *Use) (end func(tookPlace bool)) {
	use.Peer, use.Since = PeerOf(ctx), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledgerLocked(id).uses[use] = struct{}{}
	return func(tookPlace bool) {
		if r.end(id, use, tookPlace) && r.quiet != nil {
			r.quiet(id)
		}
	}
}

// end reports whether the VM is quiet now, and was not before.
func (r *Reach) end(id string, use *Use, tookPlace bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.ledgers[id]
	if l == nil {
		return false
	}
	if _, counts := l.uses[use]; !counts {
		return false
	}
	delete(l.uses, use)
	a, held := use.activity()
	if tookPlace && a.At.After(l.last.At) {
		l.last = a
	}
	r.tidyLocked(id)
	_, inUse := l.now()
	return held && !inUse
}

// tidyLocked forgets a ledger that has nothing in it.
func (r *Reach) tidyLocked(id string) {
	if l := r.ledgers[id]; l != nil && len(l.uses) == 0 && l.falling == nil && l.sleeps == 0 && l.last == (vm.Activity{}) {
		delete(r.ledgers, id)
	}
}

// Hold counts a use of a VM until release is called. Open and Dial do so by themselves;
// it is for what leads into a guest and is neither a session nor a connection yet: a
// wake, a wait, a request. It has no scope: the caller has checked that the VM is in its own.
func (r *Reach) Hold(ctx context.Context, id string, cause Cause) (release func()) {
	end := r.begin(ctx, id, &Use{Cause: cause})
	return func() { end(true) }
}

// Uses returns the uses of a VM that have not been released, the oldest first.
func (r *Reach) Uses(id string) []Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	var uses []Use
	if l := r.ledgers[id]; l != nil {
		for use := range l.uses {
			uses = append(uses, *use)
		}
	}
	slices.SortFunc(uses, func(a, b Use) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Cause, b.Cause)) })
	return uses
}

// Last returns the last activity of a VM, zero if none is known, and whether it goes on:
// then its time is now.
func (r *Reach) Last(id string) (last vm.Activity, inUse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgers[id]; l != nil {
		return l.now()
	}
	return vm.Activity{}, false
}

// Note records an activity that did not pass here, such as the guest's own work, unless
// a later one is known.
func (r *Reach) Note(id string, a vm.Activity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgerLocked(id); a.At.After(l.last.At) {
		l.last = a
	}
}

// Forget drops what is known about a VM that does not exist any more, also of uses that
// have not been released yet.
func (r *Reach) Forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ledgers, id)
}

// OnQuiet sets what is called when the last use that kept a VM awake has ended. Call it
// before the first use.
func (r *Reach) OnQuiet(quiet func(id string)) { r.quiet = quiet }

// FallAsleep marks a VM as falling asleep until it is decided whether it sleeps, and
// decided is called. Who wants to reach it meanwhile waits, and then wakes it. last is
// its last activity. The VM's lock is held.
func (r *Reach) FallAsleep(id string) (last vm.Activity, decided func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, _ = r.ledgerLocked(id).now()
	return last, r.fallAsleepLocked(id)
}

// FallAsleepIfIdle is FallAsleep for a VM that is not in use, and was not after since;
// else decided is nil. That is decided in one step with the arrivals: one that comes
// before keeps the VM awake, one that comes after waits.
func (r *Reach) FallAsleepIfIdle(id string, since time.Time) (last vm.Activity, decided func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, inUse := r.ledgerLocked(id).now()
	if inUse || last.At.After(since) {
		r.tidyLocked(id)
		return last, nil
	}
	return last, r.fallAsleepLocked(id)
}

func (r *Reach) fallAsleepLocked(id string) (decided func()) {
	l, end := r.ledgerLocked(id), make(chan struct{})
	l.falling = end
	l.sleeps++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		l.falling = nil
		close(end)
		r.tidyLocked(id)
	}
}

// steadily calls do once no sleep of the VM is in progress, and again if one has begun
// meanwhile: what do has found then was about to end.
func (r *Reach) steadily(ctx context.Context, id string, do func() error) error {
	for {
		before, falling := r.falling(id)
		for falling != nil {
			select {
			case <-falling:
			case <-ctx.Done():
				return errs.New(errs.TimedOut, "vm_busy", "cannot reach the VM: it is just falling asleep").WithHint("try again, or wait longer")
			}
			before, falling = r.falling(id)
		}
		err := do()
		if now, _ := r.falling(id); now == before || ctx.Err() != nil {
			return err
		}
	}
}

// falling returns how often the VM has begun to fall asleep, and what is closed at the
// end of a sleep in progress.
func (r *Reach) falling(id string) (sleeps int, end <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgers[id]; l != nil {
		return l.sleeps, l.falling
	}
	return 0, nil
}

// arrival returns what a caller wakes a VM for: its own newest use.
func (r *Reach) arrival(ctx context.Context, id string) vm.Activity {
	a := vm.Activity{At: time.Now(), Peer: PeerOf(ctx)}
	for _, use := range r.Uses(id) {
		if use.Peer == a.Peer && !use.passive {
			a.Cause = string(use.Cause)
		}
	}
	return a
}
