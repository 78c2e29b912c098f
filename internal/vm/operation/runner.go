// Package operation runs operations on VMs: one at a time on each VM, to its
// end even when the client leaves, with an entry in the event log.
//
// It knows nothing of machines, files or networks: what an operation does is
// the function it is given. Start at [Runner.Run]; slots.go bounds how many
// clones are made at a time.
package operation

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

// Store is what a runner needs of the database.
type Store interface {
	vm.Reader
	vm.Updater
	vm.EventAppender
}

// Runner runs operations. The zero Runner is not ready; see [New].
type Runner struct {
	store   Store
	log     *slog.Logger
	locks   *locks
	changes *changes

	finishRestore Func        // see OnRestoring
	changed       func(vm.VM) // these two are set by Watch
	gone          func(id string)

	recovered chan struct{}  // closed by Open
	closing   chan struct{}  // closed by Close
	work      sync.WaitGroup // operations and background work
}

// New returns a runner whose operations wait until Open is called.
func New(store Store, log *slog.Logger) *Runner {
	return &Runner{
		store: store, log: log, locks: newLocks(), changes: newChanges(),
		changed: func(vm.VM) {}, gone: func(string) {},
		recovered: make(chan struct{}), closing: make(chan struct{}),
	}
}

// OnRestoring sets what finishes a restore that was cut short, before anything
// else is done to the VM. Call it before Open.
func (r *Runner) OnRestoring(finish Func) { r.finishRestore = finish }

// Watch sets what is called after each change of a VM and after its deletion; both must
// be quick. Call it before Open.
func (r *Runner) Watch(changed func(vm.VM), gone func(id string)) { r.changed, r.gone = changed, gone }

// Open lets operations on existing VMs begin: startup recovery is done.
func (r *Runner) Open() { close(r.recovered) }

// Close refuses new clones, ends background work that follows Closing, and
// waits for all work until ctx is done.
func (r *Runner) Close(ctx context.Context) error {
	close(r.closing)
	done := make(chan struct{})
	go func() { r.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("operations still running: %w", ctx.Err())
	}
}

// Closing is closed when Close is called.
func (r *Runner) Closing() <-chan struct{} { return r.closing }

// Go runs background work that Close waits for.
func (r *Runner) Go(work func()) { r.work.Go(work) }

// Func is what an operation does to a VM. It runs under the VM's lock with the
// row as it is now, and returns the row as it has left it.
type Func func(ctx context.Context, v vm.VM) (vm.VM, error)

// Op is one operation.
type Op struct {
	Scope access.Scope
	VMID  string
	Name  string // for the event log: start, stop, …
	Do    Func

	// NoWait makes Run fail at once, with the error of 2, while the VM has another
	// operation: it is for callers that hold the lock of another VM.
	NoWait bool
	// Urgent cuts short what another operation on the VM waits for; see Runner.Urged.
	Urgent bool

	// Skip, when not nil, looks at the row under the lock: skip = true, or an
	// error, ends the operation before Do, and without an event.
	Skip func(vm.VM) (skip bool, err error)
}

// Run runs one operation on one VM:
//
//  1. The VM must be in op's scope, else errs.NotFound, without waiting.
//  2. It waits for startup recovery and for the VM's lock, as long as ctx allows.
//     Errors: errs.Unavailable with code starting_up, errs.TimedOut with code vm_busy.
//  3. From here on the operation runs to its end, detached from ctx: a client
//     that leaves aborts nothing. When ctx ends first, Run returns
//     errs.TimedOut with code still_working.
//  4. Under the lock it reads the row again, finishes a restore that was cut
//     short, asks op.Skip and runs op.Do.
//  5. How Do ended becomes an event, with its duration and the context's cause.
//
// An operation that makes VMs has no row to begin with. It takes Lock of
// each new id before its row can be seen, and does steps 3 and 5 by Detach and Record.
func (r *Runner) Run(ctx context.Context, op Op) (vm.VM, error) {
	if _, err := r.store.VM(ctx, op.Scope, op.VMID); err != nil {
		return vm.VM{}, err
	}
	unlock, err := r.lockFor(ctx, op)
	if err != nil {
		return vm.VM{}, err
	}
	done := make(chan outcome[vm.VM], 1)
	r.work.Go(func() {
		defer unlock()
		after, err := r.RunLocked(context.WithoutCancel(ctx), op)
		done <- outcome[vm.VM]{after, err}
	})
	return await(ctx, done)
}

type heldKey struct{}

// Held returns the id of the VM whose lock the operation of ctx holds, "" without one. What
// needs that lock does not end before the operation does.
func Held(ctx context.Context) string {
	id, _ := ctx.Value(heldKey{}).(string)
	return id
}

// RunLocked does steps 4 and 5 of Run for a caller that holds the VM's lock.
func (r *Runner) RunLocked(ctx context.Context, op Op) (vm.VM, error) {
	ctx = context.WithValue(ctx, heldKey{}, op.VMID)
	v, err := r.store.VM(ctx, op.Scope, op.VMID)
	if err == nil && v.Restoring() {
		v, err = r.finishRestore(ctx, v)
	}
	if err != nil {
		return vm.VM{}, err
	}
	if op.Skip != nil {
		if skip, err := op.Skip(v); skip || err != nil {
			return v, err
		}
	}
	began := time.Now()
	after, err := op.Do(ctx, v)
	r.audit(ctx, v, op.Name, began, err)
	return after, err
}

var errStarting = errs.New(errs.Unavailable, "starting_up", "cannot operate on VMs yet: hatchd is still recovering the running ones").
	WithHint("try again in a moment")

// AwaitRecovery waits until startup recovery is done.
// Errors: errs.Unavailable with code starting_up.
func (r *Runner) AwaitRecovery(ctx context.Context) error {
	select {
	case <-r.recovered:
		return nil
	case <-ctx.Done():
		return errStarting
	}
}

// LockRecovered waits for startup recovery and then for the VM's lock.
// Errors: errs.Unavailable with code starting_up, errs.TimedOut with code vm_busy.
func (r *Runner) LockRecovered(ctx context.Context, id string) (unlock func(), err error) {
	return r.lockRecovered(ctx, id, false)
}

func (r *Runner) lockRecovered(ctx context.Context, id string, urgent bool) (unlock func(), err error) {
	if err := r.AwaitRecovery(ctx); err != nil {
		return nil, err
	}
	if unlock, err = r.locks.lock(ctx, id, urgent); err != nil {
		return nil, busy()
	}
	return unlock, nil
}

func busy() error {
	return errs.New(errs.TimedOut, "vm_busy", "cannot operate on the VM: another operation is still running").
		WithHint("try again, or wait longer")
}

// lockFor is LockRecovered as an operation wants it.
func (r *Runner) lockFor(ctx context.Context, op Op) (unlock func(), err error) {
	if !op.NoWait {
		return r.lockRecovered(ctx, op.VMID, op.Urgent)
	}
	if err := r.AwaitRecovery(ctx); err != nil {
		return nil, err
	}
	unlock, free := r.locks.tryLock(op.VMID)
	if !free {
		return nil, busy()
	}
	return unlock, nil
}

// Lock waits for a VM's lock until ctx is done: for recovery, for background
// work, and for a VM whose row is not stored yet.
func (r *Runner) Lock(ctx context.Context, id string) (unlock func(), err error) {
	return r.locks.lock(ctx, id, false)
}

// Urged returns a channel for an operation that waits under the VM's lock. It is closed
// when one comes that must not wait for it, such as a kill or a delete.
func (r *Runner) Urged(id string) <-chan struct{} { return r.locks.urged(id) }

// Locked reports whether an operation holds or awaits the VM's lock.
func (r *Runner) Locked(id string) bool { return r.locks.inUse(id) }

// Detach runs fn to its end, even when ctx ends, and waits for it as long as
// ctx allows. Errors: fn's; errs.TimedOut with code still_working.
func Detach[T any](ctx context.Context, r *Runner, fn func(context.Context) (T, error)) (T, error) {
	done := make(chan outcome[T], 1)
	r.work.Go(func() {
		result, err := fn(context.WithoutCancel(ctx))
		done <- outcome[T]{result, err}
	})
	return await(ctx, done)
}

type outcome[T any] struct {
	result T
	err    error
}

func await[T any](ctx context.Context, done <-chan outcome[T]) (T, error) {
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		var none T
		return none, errs.New(errs.TimedOut, "still_working", "the operation continues, but the request ended before it").
			WithHint("look at the VM's state").WithCause(ctx.Err())
	}
}

// Update changes the stored VM and wakes all callers of Await for it. While the
// database does not answer, it tries again: see Insist. A change that leaves the table of phases is logged: it is a bug of ours.
func (r *Runner) Update(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error) {
	var v vm.VM
	err := r.Insist(ctx, func() (err error) {
		v, err = r.store.UpdateVM(ctx, id, change)
		return err
	})
	if err != nil {
		return v, err
	}
	r.changes.announce(id)
	r.changed(v)
	if _, legal := v.Phase(); !legal {
		r.log.Error("a vm is in no legal phase", logkey.VM, id, "state", v.State, "intent", v.Intent, "asleep", v.Asleep(), "machine", v.Machine != nil)
	}
	return v, nil
}

// Announce wakes all callers of Await for a VM whose row was deleted.
func (r *Runner) Announce(id string) {
	r.changes.announce(id)
	r.gone(id)
}

// Revised tells of a change that was not made by Update.
func (r *Runner) Revised(v vm.VM) {
	r.changes.announce(v.ID)
	r.changed(v)
}

// Await returns the VM once met says so. met returns an error when the
// condition can no longer come true.
// Errors: met's; errs.NotFound; errs.TimedOut with code wait_timeout when ctx ends first.
func (r *Runner) Await(ctx context.Context, scope access.Scope, id string, met func(vm.VM) (bool, error)) (vm.VM, error) {
	v, err := r.store.VM(ctx, scope, id)
	if ctx.Err() != nil {
		return vm.VM{}, vm.WaitTimeout(v)
	}
	if err != nil {
		return vm.VM{}, err // a VM that does not exist is never announced
	}
	for {
		changed := r.changes.next(id)
		now, err := r.store.VM(ctx, scope, id)
		if ctx.Err() != nil {
			return vm.VM{}, vm.WaitTimeout(v)
		}
		if err != nil {
			return vm.VM{}, err
		}
		v = now
		if ok, err := met(v); ok || err != nil {
			return v, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return vm.VM{}, vm.WaitTimeout(v)
		}
	}
}

// Changed returns a channel that is closed at the VM's next change. Take it
// before reading the VM, so that no change is missed.
func (r *Runner) Changed(id string) <-chan struct{} { return r.changes.next(id) }

// AnyChanged is Changed for all VMs. A VM that was just stored is announced with its
// first change only.
func (r *Runner) AnyChanged() <-chan struct{} { return r.changes.nextOfAny() }

// Append adds an event about a VM that no change of its row implies. An error
// is logged: the operation itself has happened.
func (r *Runner) Append(ctx context.Context, v vm.VM, e event.Event) {
	r.logUnstored(v, e, r.store.AppendEvents(ctx, v.About(e)))
}

func (r *Runner) logUnstored(v vm.VM, e event.Event, err error) {
	if err != nil {
		r.log.Error("cannot append to the event log", logkey.VM, v.ID, "type", e.Type, "message", e.Message, logkey.Error, err)
	}
}
