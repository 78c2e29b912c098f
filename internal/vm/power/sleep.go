package power

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// Sleep saves a running VM's memory and ends its VMM, and returns once the VMM is
// gone. The VM keeps its lease, and its SSH port stays open. A sleeping VM is
// returned as it is. Making the memory durable continues in the background.
//
// Errors: errs.Conflict when the VM does not run, or with code vmm_replaced when it could
// not be woken; errs.Exhausted with code
// disk_full when the host's disk cannot take its memory; errs.Unsupported.
// After an error the guest continues as before.
func (s *Service) Sleep(ctx context.Context, v vm.VM) (vm.VM, error) {
	last, decided := s.FallAsleep(v.ID)
	defer decided()
	return s.SleepBecause(ctx, v, vm.Down{Rule: vm.RuleRequest, Reason: "asleep on request", Last: last})
}

// SleepBecause is Sleep for a caller that has let the VM fall asleep, see
// Config.FallAsleep, and knows why. A paused VM sleeps only when its time has passed; it
// runs once it is woken.
func (s *Service) SleepBecause(ctx context.Context, v vm.VM, why vm.Down) (vm.VM, error) {
	if v.Asleep() {
		return s.leaveDown(ctx, v)
	}
	sleepable := v
	if why.Rule == vm.RuleExpiry && v.State == vm.Paused {
		sleepable.State = vm.Running
	}
	m, err := s.CheckSleep(ctx, sleepable)
	if err != nil {
		return vm.VM{}, err
	}
	s.TrimDisk(ctx, v, m)
	return s.sleep(ctx, v, m, func(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error) {
		return s.Runner.Update(ctx, id, vm.DownBecause(why, change))
	})
}

// trimTimeout bounds the wait for a guest to trim its disk, which is only for the sake of
// the host's space.
const trimTimeout = 2 * time.Second

// TrimDisk has a running guest give unused blocks of its disk back, before the disk is
// kept or copied. It ignores errors: an agent may be too old, or a disk unable.
func (s *Service) TrimDisk(ctx context.Context, v vm.VM, m *live.Machine) {
	if v.State != vm.Running {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, trimTimeout)
	defer cancel()
	if err := m.Guest.Trim(ctx); err != nil {
		s.Log.Debug("cannot trim the disk of a guest", logkey.VM, v.ID, logkey.Error, err)
	}
}

// SleepWithHost is Sleep while the host shuts down, for a VM that runs or is paused:
// hatchd wakes it when it starts again.
func (s *Service) SleepWithHost(ctx context.Context, v vm.VM) (vm.VM, error) {
	m, err := s.Live.Running(ctx, v, "put to sleep")
	if err == nil {
		err = s.CheckCanSleep(v)
	}
	if err != nil {
		return vm.VM{}, err
	}
	return s.sleep(ctx, v, m, withHost(s.Runner))
}

// kernelTimeout is how long after its start the kernel of a guest is waited for.
const kernelTimeout = 30 * time.Second

// AwaitKernel waits until the agent of a guest that boots has answered, if a machine whose
// kernel is not up yet cannot be saved: QEMU saves no memory of the firmware, in which the
// kernel then misses the pointer to ACPI's tables, and so finds no disks. A guest without
// an answer is saved all the same: its kernel has had the time.
func (s *Service) AwaitKernel(ctx context.Context, v vm.VM) {
	if !v.Boots() || !s.Engine.Drivers[v.Driver].Info().Capabilities.SaveNeedsKernel {
		return
	}
	left := kernelTimeout
	if v.StartedAt != nil {
		left -= time.Since(*v.StartedAt)
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	_, _ = s.Runner.Await(ctx, access.Everyone, v.ID, func(v vm.VM) (bool, error) { return !v.Boots(), nil })
}

func (s *Service) sleep(ctx context.Context, v vm.VM, m *live.Machine, commit transition.Commit) (vm.VM, error) {
	s.AwaitKernel(ctx, v)
	began := time.Now()
	r, err := s.Engine.Sleep(ctx, v, m, commit)
	if err != nil {
		s.Log.Warn("cannot put vm to sleep", logkey.VM, v.ID, logkey.Step, transition.StepOf(err), logkey.Error, err)
		return vm.VM{}, err
	}
	// A process that does not end is killed at the next start of hatchd; until
	// then the VM cannot be woken, and nothing is lost.
	err = s.Engine.End(ctx, m)
	s.Live.Drop(v.ID, m)
	s.Engine.DetachLink(ctx, r.VM)
	if err != nil {
		return vm.VM{}, err
	}
	s.persist(v)
	s.Runner.Append(ctx, r.VM, vm.SleptEvent(r.VM, time.Since(began)))
	return r.VM, nil
}

// CheckSleep returns the machine of a VM that can be put to sleep.
// Errors: as Sleep's.
func (s *Service) CheckSleep(ctx context.Context, v vm.VM) (*live.Machine, error) {
	m, err := s.Live.Running(ctx, v, "put to sleep")
	if err == nil {
		err = notPaused(v, "put to sleep", "resume it first")
	}
	if err == nil {
		err = s.CheckCanSleep(v)
	}
	return m, err
}

// CheckCanSleep returns an error for a VM whose VMM cannot save it, or could not wake
// it. Errors: errs.Unsupported; errs.Conflict with code vmm_replaced.
func (s *Service) CheckCanSleep(v vm.VM) error {
	if !s.Engine.CanSleep(v) {
		return errs.New(errs.Unsupported, "sleep_unsupported", "cannot put to sleep VM %s: %s cannot save guests here", v.ID, v.Driver).
			WithHint("pause it, or stop it; hatch doctor says what is wrong with %s", v.Driver)
	}
	return s.Engine.CheckVersion("put to sleep", v)
}

// Wake continues a sleeping VM from its saved memory, and returns once its CPUs
// run. A running VM is returned as it is.
//
// Errors: errs.Conflict with code vm_not_asleep when there is nothing to wake,
// or saved_unusable when the saved state is missing, damaged or of another host
// or version; errs.Exhausted. After an error the VM sleeps on, unless its VMM could not be
// ended: then it has failed, and its saved memory no longer counts. Also Queue's and
// AcquireStart's.
func (s *Service) Wake(ctx context.Context, v vm.VM) (vm.VM, error) {
	return s.wakeQueued(ctx, v, s.Queue)
}

// WakeAgain is Wake for a VM that was awake before, as StartAgain.
func (s *Service) WakeAgain(ctx context.Context, v vm.VM) (vm.VM, error) {
	return s.wakeQueued(ctx, v, unbounded)
}

func (s *Service) wakeQueued(ctx context.Context, v vm.VM, queue admit) (vm.VM, error) {
	m, err := s.Live.Get(ctx, v, live.Adopt)
	if err != nil {
		return vm.VM{}, err
	}
	if m != nil {
		return v, notPaused(v, "wake", "resume it")
	}
	if !v.Asleep() {
		return vm.VM{}, errs.New(errs.Conflict, "vm_not_asleep", "cannot wake VM %s: it is %s", v.ID, v.State).WithHint("start it")
	}
	if err := s.Engine.CheckVersion("wake", v); err != nil { // while the VM can still be left as it is
		return vm.VM{}, err
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
	defer release()
	slept, began := *v.Sleep, time.Now()
	err = s.Runner.Insist(ctx, func() error { // as in start
		leased, err := s.Capacity.LeaseToWake(ctx, v)
		if err == nil {
			v = leased
		}
		return err
	})
	if err != nil {
		return vm.VM{}, err
	}
	s.persister.stop(v.ID)
	r, err := s.Engine.Wake(ctx, v, s.Runner.Update)
	switch {
	case err == nil:
		s.Live.Watch(v.ID, r.Live)
		s.Runner.Append(ctx, r.VM, vm.WokeEvent(ctx, time.Since(began)))
		s.wakes.resumed(ctx, r.VM, s.Runner)
		return r.VM, nil
	case r.Stuck || r.Lost:
		return s.FailStart(ctx, r, err)
	}
	step := transition.StepOf(err)
	s.Log.Warn("cannot wake vm", logkey.VM, v.ID, logkey.Step, step, logkey.Error, err)
	reason := fmt.Sprintf("asleep; cannot wake the VM (%s): %s", step, errs.Public(err))
	if err := s.SleepOn(ctx, v, slept, reason); err != nil {
		s.Log.Error("cannot store that a vm still sleeps", logkey.VM, v.ID, logkey.Error, err)
	}
	return vm.VM{}, transition.Public(err, errs.New(errs.Internal, "wake_failed", "cannot wake VM %s: the %s step failed", v.ID, step))
}

// SleepOn stores that a VM still sleeps after a wake that did not happen, and
// continues to make its memory durable.
func (s *Service) SleepOn(ctx context.Context, v vm.VM, slept vm.Sleep, reason string) error {
	_, err := s.Runner.Update(ctx, v.ID, vm.ToAsleepAgain(slept, reason))
	if !slept.Durable {
		s.persist(v)
	}
	return err
}

// StopPersisting leaves the memory of a sleeping VM where it is, as it is.
func (s *Service) StopPersisting(id string) { s.persister.stop(id) }

// Persist makes the memory of a sleeping VM durable in the background, unless it
// is already. Precondition: the VM's lock is held.
func (s *Service) Persist(v vm.VM) {
	if v.Volatile() {
		s.persist(v)
	}
}

// FinishRestore puts the snapshot that is staged for a VM in place, after it has
// ended the machine that the VM still has. It can be repeated when it was cut
// short at any step.
func (s *Service) FinishRestore(ctx context.Context, v vm.VM) (vm.VM, error) {
	m, err := s.Live.Get(ctx, v, live.Adopt)
	if err != nil {
		return vm.VM{}, err
	}
	if m != nil {
		if err := s.endAndDrop(ctx, v.ID, m); err != nil {
			return vm.VM{}, err
		}
		s.Engine.DetachLink(ctx, v)
	}
	if err := s.Memories.Release(v.ID); err != nil {
		return vm.VM{}, err
	}
	if err := s.Files.CommitStaged(v.ID, s.Memories.Replace); err != nil {
		return vm.VM{}, err
	}
	return s.Runner.Update(ctx, v.ID, vm.ToRestored)
}
