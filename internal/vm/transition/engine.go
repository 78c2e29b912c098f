// Package transition takes a VM from one phase to the next: boot, sleep, wake
// and clone, each a list of steps with undo.
//
// It has no store and takes no locks: its callers hold the VM's lock, and a
// step that must be stored calls the Commit that the caller passes. What a
// transition has left after an error is in its [Run]. Start at [Engine.Boot];
// spec.go says what a machine is started with.
package transition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

// BootFiles has what guests boot from.
type BootFiles interface {
	// Initramfs returns the path of the initramfs for b, made when missing.
	Initramfs(ctx context.Context, b image.Boot) (string, error)

	// Unchanged reports whether the kernel and the root file system of b are
	// still the registered files.
	Unchanged(b image.Boot) bool
}

// Evictor evicts what hatchd keeps only to save time (see capacity.Service).
type Evictor interface {
	EvictFor(ctx context.Context, ownerID string, take func() error) error
}

// Config is what an engine needs. All fields are required.
type Config struct {
	Files     vm.Files
	Memories  vm.Memories
	Network   network.Attacher
	Forwards  network.Forwarder
	Guests    vm.Guests
	BootFiles BootFiles
	Snapshots snapshot.Reader
	Live      *live.Registry
	Drivers   map[string]vmm.Driver // by Info().Name
	Evictor   Evictor
	Subnet    network.Network
	OwnUser   bool // run each VMM under the lease's UID; off for the fake driver
	Log       *slog.Logger
}

// Engine runs transitions.
type Engine struct{ Config }

// New returns an engine.
func New(cfg Config) *Engine { return &Engine{cfg} }

// Commit stores a change of the VM's row and returns the row.
type Commit func(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error)

// Run is one transition under way, and what it has left when it ended.
type Run struct {
	VM    vm.VM
	Fresh bool          // the VM has no disk of its own yet: undo removes everything
	Stuck bool          // the VMM could not be ended: what it may use stays reserved
	Lost  bool          // the guest may have run: its saved memory no longer counts
	Live  *live.Machine // once the guest is connected

	commit  Commit
	sleep   *vm.Sleep // how the memory is saved, for Sleep and Wake
	linked  bool      // the network step is done
	tap     *os.File  // until the driver has it
	base    vmm.Shared
	machine vmm.Machine
}

// Left names a VMM process that could not be ended, or is nil.
func (r *Run) Left() *vmm.Handle {
	if !r.Stuck {
		return nil
	}
	h := r.machine.Handle()
	return &h
}

// StepError says which step of a transition failed.
type StepError struct {
	Step string
	Err  error
}

// Error returns the step and its error, for the log.
func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns the step's error.
func (e *StepError) Unwrap() error { return e.Err }

// StepOf returns the name of the step that failed with err.
func StepOf(err error) string {
	if failed, ok := errors.AsType[*StepError](err); ok {
		return failed.Step
	}
	return "unknown"
}

// step is one part of a transition, with its undo. undo is called when a later
// step fails, and when do itself failed half-way; it does nothing while a VMM
// process lives that could not be ended.
type step struct {
	name string
	do   func(context.Context, *Run) error
	undo func(context.Context, *Run)
}

// do runs steps in order and records how long each took; when one fails, it
// undoes those up to it. Errors: *StepError.
func (e *Engine) do(ctx context.Context, name string, steps []step, r *Run) error {
	began := time.Now()
	for i, st := range steps {
		began := time.Now()
		if err := st.do(ctx, r); err != nil {
			undo(ctx, steps[:i+1], r)
			return &StepError{st.name, err}
		}
		r.VM.Took = append(r.VM.Took, vm.Step{Name: st.name, Took: time.Since(began)})
	}
	e.Log.Info(name, logkey.VM, r.VM.ID, logkey.Took, time.Since(began), "steps", r.VM.Took)
	return nil
}

func undo(ctx context.Context, steps []step, r *Run) {
	for _, step := range slices.Backward(steps) {
		if step.undo != nil {
			step.undo(ctx, r)
		}
	}
}

// store commits a change and keeps the row, with the times of the steps so far.
func (r *Run) store(ctx context.Context, change func(*vm.VM)) error {
	v, err := r.commit(ctx, r.VM.ID, change)
	if err != nil {
		return err
	}
	v.Took = r.VM.Took
	r.VM = v
	return nil
}

// Boot starts a machine that boots. Preconditions: the VM's lease is whole, and
// it has no machine. Errors: *StepError; only r.Stuck leaves a process.
func (e *Engine) Boot(ctx context.Context, v vm.VM, commit Commit) (*Run, error) {
	r := &Run{VM: v, Fresh: !v.Provisioned, commit: commit}
	return r, e.do(ctx, "vm started", []step{
		{"files", e.provision, e.unprovision},
		{"memory", e.makeMemory, e.releaseMemory},
		{"network", e.attach, e.detach},
		{"forward", e.openForwards, e.closeForwards},
		{"machine", e.launch, e.kill},
		{"row", e.commitRunning, nil}, // first of what follows: after a crash the row leads to the process
		{"guest", e.connect, e.disconnect},
	}, r)
}

// Sleep saves the memory of a VM and stops its CPUs; the caller ends the machine
// then. Until the row step the VM runs, after it the VM sleeps. On error the guest
// continues. Errors: *StepError.
func (e *Engine) Sleep(ctx context.Context, v vm.VM, m *live.Machine, commit Commit) (*Run, error) {
	r := &Run{VM: v, Live: m, machine: m, commit: commit}
	return r, e.do(ctx, "vm asleep", []step{
		{"capacity", e.prepareSave, e.forgetSaved},
		{"save", e.save, e.continueAfterSave},
		{"row", e.commitAsleep, nil},
	}, r)
}

// Wake starts a machine from saved memory and lets its CPUs run. Until the row
// step the VM sleeps, because its guest has not run; after it, it runs.
// Precondition: the VM's lease is whole. Errors: *StepError; see Run.Lost.
func (e *Engine) Wake(ctx context.Context, v vm.VM, commit Commit) (*Run, error) {
	r := &Run{VM: v, sleep: v.Sleep, commit: commit}
	steps := []step{
		{"memory", e.recall, e.freeRecalled},
		{"network", e.attach, e.detach},
		{"forward", e.openForwards, nil},
		{"machine", e.wakeMachine, e.kill},
		{"guest", e.rejoin, e.disconnect},
		{"row", e.commitAwake, nil},
	}
	if err := e.do(ctx, "vm woken", steps, r); err != nil {
		return r, err
	}
	if err := r.machine.Resume(ctx); err != nil {
		undo(ctx, steps, r)
		e.closeForwards(ctx, r)
		e.releaseMemory(ctx, r)
		r.Lost = true
		return r, &StepError{"resume", err}
	}
	e.forgetSaved(ctx, r)
	return r, nil
}

// Source is what a VM is cloned from.
type Source struct {
	Snapshot snapshot.Snapshot
	Base     func() (*os.File, error) // its memory; called once the VM has its lease and files
	Setup    vm.Setup                 // what cloud-init does in the clone
}

// Clone starts a machine from a snapshot's memory, and waits until its guest has
// confirmed its own identity. Until the row step it is no VM to count on: startup
// recovery removes what a crash leaves. Errors: *StepError.
func (e *Engine) Clone(ctx context.Context, v vm.VM, from Source, commit Commit) (*Run, error) {
	r := &Run{VM: v, Fresh: true, commit: commit}
	err := e.do(ctx, "vm cloned", []step{
		{"files", func(ctx context.Context, r *Run) error { return e.provisionClone(ctx, r, from) }, e.unprovision},
		{"memory", e.makeMemory, e.releaseMemory},
		{"network", e.attach, e.detach},
		{"forward", e.openForwards, e.closeForwards},
		{"machine", func(ctx context.Context, r *Run) error { return e.cloneMachine(ctx, r, from) }, e.kill},
		{"guest", func(ctx context.Context, r *Run) error { return e.reidentify(ctx, r, from) }, e.disconnect},
		{"row", e.commitRunning, nil},
	}, r)
	if err == nil {
		e.forgetSaved(ctx, r)
	}
	return r, err
}

func (e *Engine) commitRunning(ctx context.Context, r *Run) error {
	h := r.machine.Handle()
	h.Base = r.base
	return r.store(ctx, vm.ToRunning(h, vm.Now()))
}

func (e *Engine) commitAwake(ctx context.Context, r *Run) error {
	return r.store(ctx, vm.ToAwake(r.machine.Handle(), vm.Now()))
}

func (e *Engine) commitAsleep(ctx context.Context, r *Run) error {
	r.sleep.At = vm.Now()
	return r.store(ctx, vm.ToAsleep(*r.sleep))
}

// KillTimeout bounds the wait until a killed process is gone.
const KillTimeout = 30 * time.Second

// End kills a machine and returns when the process is gone.
func (e *Engine) End(ctx context.Context, m vmm.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, KillTimeout)
	defer cancel()
	if err := m.Kill(ctx); err != nil {
		return fmt.Errorf("cannot end the VMM: %w", err)
	}
	return nil
}

// busyRetryAfter is how long to wait after a step that took too long.
const busyRetryAfter = 30 * time.Second

// Public returns what a user is told of a step's error: its own text if it has
// one, that the host is too busy if the step took too long, else fallback.
func Public(err error, fallback *errs.Error) *errs.Error {
	if e, ok := errs.As(err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errs.New(errs.Unavailable, "host_busy", "%s in time", fallback.Message).
			WithHint("try again when the host has less to do").WithRetryAfter(busyRetryAfter).WithCause(err)
	}
	return fallback.WithCause(err)
}
