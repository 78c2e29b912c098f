// Package power changes whether a VM runs: start, stop, sleep, wake, pause,
// resume and delete, and what follows when a machine ends without a request.
//
// Its functions are for callers that hold the VM's lock: operations of
// lifecycle, clones, recovery. It makes no VMs. Start at [Service.Start]; the
// steps of each transition are in internal/vm/transition.
package power

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/capacity"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Store is what power needs of the database.
type Store interface {
	vm.Reader
	vm.Updater
	vm.Leaser
}

// Config is what the service needs. All fields are required.
type Config struct {
	Store       Store
	Files       vm.Files
	Memories    vm.Memories
	Runner      *operation.Runner
	Engine      *transition.Engine
	Live        *live.Registry
	Capacity    *capacity.Service
	StopTimeout time.Duration // how long a stop waits for the guest before it kills
	CPUs        int           // of the host
	BootTime    time.Duration // how long a booting guest counts as a start in progress, unless it is up before
	HasRoom     func() bool   // reports whether guests whose disk was full may write again

	// FallAsleep has all who want to reach a VM wait from now on until decided is called,
	// and tells what it was last used for.
	FallAsleep func(id string) (last vm.Activity, decided func())
	Log        *slog.Logger
}

// Service changes whether VMs run.
type Service struct {
	Config
	persister *persister
	wakes     *wakeFailures
	starts    *starts
}

// New returns a service. It handles the ends and reports of cfg.Live's machines,
// finishes restores for cfg.Runner, and says when memory is on disk to cfg.Capacity.
func New(cfg Config) *Service {
	s := &Service{Config: cfg, persister: newPersister(), wakes: newWakeFailures(), starts: newStarts(cfg.CPUs)}
	cfg.Live.Handle(live.Handlers{Exited: s.exited, Reported: s.reported, Checked: s.checked, Busy: cfg.Runner.Locked}, cfg.Runner.Go, cfg.Runner.Closing())
	cfg.Runner.OnRestoring(s.FinishRestore)
	cfg.Capacity.OnPersist(s.persister.await)
	return s
}

// Close stops making memory durable; the next hatchd does it.
func (s *Service) Close() { s.persister.close() }

// FinishPersisting waits until the memory of all sleeping VMs is durable or could not
// be saved, or ctx is done. From the first call on a copy that fails is not repeated,
// but for one more attempt after a failure before: the host is shutting down.
func (s *Service) FinishPersisting(ctx context.Context) { s.persister.finish(ctx) }

// Start starts a VM without a machine. A running VM is returned as it is. A
// sleeping one boots; its saved memory is lost. It waits until the host has CPUs for
// another boot. Errors: among others, as Queue's and AcquireStart's.
func (s *Service) Start(ctx context.Context, v vm.VM) (vm.VM, error) {
	return s.startQueued(ctx, v, s.Queue)
}

func (s *Service) startQueued(ctx context.Context, v vm.VM, queue admit) (vm.VM, error) {
	m, err := s.Live.Get(ctx, v, live.Adopt)
	if err != nil {
		return vm.VM{}, err
	}
	if m != nil {
		return v, notPaused(v, "start", "resume it")
	}
	leave, err := queue(v.OwnerID)
	if err != nil {
		return vm.VM{}, err
	}
	defer leave()
	release, err := s.AcquireStart(ctx, v.OwnerID)
	if err != nil {
		return vm.VM{}, err
	}
	after, m, err := s.start(ctx, v)
	if err != nil {
		release()
		return after, err
	}
	s.releaseWhenUp(v.ID, m, release)
	return after, nil
}

// start starts a VM that may start now.
func (s *Service) start(ctx context.Context, v vm.VM) (vm.VM, *live.Machine, error) {
	asleep := v.Asleep()
	// It stores that the VM starts, and so does the next step: see Insist.
	err := s.Runner.Insist(ctx, func() error {
		leased, err := s.Capacity.LeaseToStart(ctx, v)
		if err == nil {
			v = leased
		}
		return err
	})
	if err != nil {
		return vm.VM{}, nil, err
	}
	s.persister.stop(v.ID)
	if v, err = s.Runner.Update(ctx, v.ID, vm.ToStarting); err != nil {
		return vm.VM{}, nil, err
	}
	if asleep {
		s.Engine.DropMemory(v.ID)
	}
	return s.boot(ctx, v)
}

// notPaused returns an error for a paused VM. Errors: errs.Conflict with code vm_paused.
func notPaused(v vm.VM, verb, hint string) error {
	if v.State == vm.Paused {
		return errs.New(errs.Conflict, "vm_paused", "cannot %s VM %s: it is paused", verb, v.ID).WithHint("%s", hint)
	}
	return nil
}

func (s *Service) boot(ctx context.Context, v vm.VM) (vm.VM, *live.Machine, error) {
	r, err := s.Engine.Boot(ctx, v, s.Runner.Update)
	if err != nil {
		v, err = s.FailStart(ctx, r, err)
		return v, nil, err
	}
	s.Live.Watch(v.ID, r.Live)
	s.wakes.resumed(ctx, v, s.Runner)
	return r.VM, r.Live, nil
}

// FailStart stores why a start failed, and returns what the owner is told, with the VM's id. A VM
// that never had a disk gives its lease back.
func (s *Service) FailStart(ctx context.Context, r *transition.Run, cause error) (vm.VM, error) {
	v, step := r.VM, transition.StepOf(cause)
	if r.Fresh && !r.Stuck {
		s.releaseLease(ctx, v.ID)
	}
	reason := fmt.Sprintf("cannot start the VM (%s): %s", step, errs.Public(cause))
	if r.Stuck {
		reason += "; its VMM could not be ended"
	}
	hasDisk := !r.Fresh || (r.Stuck && v.Unconfirmed == "")
	if _, err := s.Runner.Update(ctx, v.ID, vm.ToFailed(reason, hasDisk, r.Left())); err != nil {
		s.Log.Error("cannot store a failed start", logkey.VM, v.ID, logkey.Error, err)
	}
	s.Log.Warn("cannot start vm", logkey.VM, v.ID, logkey.Step, step, logkey.Error, cause)
	return vm.VM{}, transition.Public(cause, errs.New(errs.Internal, "start_failed", "cannot start VM %s: the %s step failed", v.ID, step)).WithVM(v.ID)
}

func (s *Service) releaseLease(ctx context.Context, id string) {
	if err := s.Runner.Insist(ctx, func() error { return s.Store.ReleaseVM(ctx, id) }); err != nil {
		s.Log.Error("cannot release the lease of a failed create", logkey.VM, id, logkey.Error, err)
	}
}

// AbandonStart cleans up a start that the end of hatchd cut short.
func (s *Service) AbandonStart(ctx context.Context, v vm.VM) error {
	if !v.Provisioned {
		if err := s.Files.Remove(v.ID); err != nil {
			return err
		}
		s.releaseLease(ctx, v.ID)
	}
	_, err := s.Runner.Update(ctx, v.ID, func(v *vm.VM) {
		vm.ToCloning("")(v) // it can boot, now that the clone is gone
		vm.ToFailed("hatchd ended while the VM was being started; start it again", v.Provisioned, nil)(v)
	})
	return err
}

// Restart stops a VM and starts it again. If hatchd or the host begins to end in
// between, the next hatchd starts a VM that was up.
func (s *Service) Restart(ctx context.Context, v vm.VM) (vm.VM, error) {
	leave, err := s.Queue(v.OwnerID) // before it is stopped
	if err != nil {
		return vm.VM{}, err
	}
	defer leave()
	stopped, err := s.Stop(ctx, v)
	if err != nil {
		return vm.VM{}, err
	}
	started, err := s.StartAgain(ctx, stopped)
	if NotBegun(err) && (v.State.Live() || v.Asleep() || v.Autostart != vm.NoAutostart) {
		_, storeErr := s.Runner.Update(ctx, v.ID, vm.ToReturning("stopped for a restart, which the end of hatchd or the shutdown of the host cut short"))
		return vm.VM{}, errors.Join(err, storeErr)
	}
	return started, err
}

// Pause halts the guest's CPUs. Pausing a paused VM is no error.
func (s *Service) Pause(ctx context.Context, v vm.VM) (vm.VM, error) {
	m, err := s.Live.Running(ctx, v, "pause")
	if err != nil {
		return vm.VM{}, err
	}
	if err := m.Pause(ctx); err != nil {
		return vm.VM{}, fmt.Errorf("cannot pause the VM: %w", err)
	}
	return s.Runner.Update(ctx, v.ID, vm.ToPaused)
}

// Resume continues a paused guest. Resuming a running VM is no error.
func (s *Service) Resume(ctx context.Context, v vm.VM) (vm.VM, error) {
	m, err := s.Live.Running(ctx, v, "resume")
	if err != nil {
		return vm.VM{}, err
	}
	if err := m.Resume(ctx); err != nil {
		return vm.VM{}, fmt.Errorf("cannot resume the VM: %w", err)
	}
	s.SetClock(v.ID, m)
	return s.Runner.Update(ctx, v.ID, vm.ToResumed)
}

// clockTimeout bounds the wait for a guest to set its clock.
const clockTimeout = 10 * time.Second

// SetClock sets the clock of a guest whose CPUs were paused, in the background:
// a guest whose agent does not answer continues all the same.
func (s *Service) SetClock(id string, m *live.Machine) {
	s.Runner.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), clockTimeout)
		defer cancel()
		if err := m.Guest.SetClock(ctx); err != nil {
			s.Log.Debug("cannot set guest clock after resume", logkey.VM, id, logkey.Error, err)
		}
	})
}

// Delete ends the VM, in any phase, and removes everything of it.
func (s *Service) Delete(ctx context.Context, v vm.VM) (vm.VM, error) {
	if _, err := s.Runner.Update(ctx, v.ID, vm.ToDeleting); err != nil {
		return vm.VM{}, err
	}
	if err := s.endForDelete(ctx, v); err != nil {
		return vm.VM{}, err
	}
	s.persister.stop(v.ID)
	s.Engine.Teardown(ctx, v)
	if err := s.Files.Remove(v.ID); err != nil {
		return vm.VM{}, fmt.Errorf("cannot remove the VM's files: %w", err)
	}
	return vm.VM{}, s.Forget(ctx, v.ID)
}

func (s *Service) endForDelete(ctx context.Context, v vm.VM) error {
	if v.Unconfirmed != "" { // such a machine is not adopted
		var h vmm.Handle
		if v.Machine != nil {
			h = *v.Machine
		}
		return s.Live.Kill(ctx, h)
	}
	m, err := s.Live.Get(ctx, v, live.Adopt)
	if m == nil || err != nil {
		return err
	}
	return s.endAndDrop(ctx, v.ID, m)
}

// endAndDrop kills the VM's machine and drops it.
func (s *Service) endAndDrop(ctx context.Context, id string, m *live.Machine) error {
	if err := s.Engine.End(ctx, m); err != nil {
		return err
	}
	s.Live.Drop(id, m)
	return nil
}

// Forget deletes the row of a VM of which nothing else is left.
func (s *Service) Forget(ctx context.Context, id string) error {
	again := false
	err := s.Runner.Insist(ctx, func() error {
		err := s.Store.DeleteVM(ctx, id)
		if again && errs.Is(err, errs.NotFound) { // the attempt before has deleted it
			err = nil
		}
		again = true
		return err
	})
	if err == nil {
		s.Runner.Announce(id)
		s.wakes.forget(id)
	}
	return err
}

// ForgetUnstored deletes, in the background, rows of VMs if they were stored although the
// database broke off: their create has failed for its caller, and no operation would
// begin on them. The caller holds their locks until done is called.
func (s *Service) ForgetUnstored(ids []string, done func()) {
	s.Runner.Go(func() {
		defer done()
		for _, id := range ids {
			if err := s.Forget(context.Background(), id); err != nil && !errs.Is(err, errs.NotFound) {
				s.Log.Error("cannot delete the row of a failed create", logkey.VM, id, logkey.Error, err)
			}
		}
	})
}
