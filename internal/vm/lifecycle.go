package vm

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Start starts a VM that has no machine. A running VM is returned as it is.
func (s *Service) Start(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "start", s.ensureStarted)
}

func (s *Service) ensureStarted(ctx context.Context, v VM) (VM, error) {
	in, err := s.holder(ctx, v)
	if err != nil {
		return VM{}, err
	}
	if in != nil {
		if v.State == Paused {
			return VM{}, errs.New(errs.Conflict, "vm_paused", "cannot start VM %s: it is paused", v.ID).WithHint("resume it")
		}
		return v, nil
	}
	asleep := v.Sleep != nil
	v, err = s.lease(ctx, v, s.capacity)
	if err != nil {
		return VM{}, err
	}
	s.stopPersisting(v.ID)
	v, err = s.update(ctx, v.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent, v.Sleep = Starting, "", WantRunning, nil
	})
	if err != nil {
		return VM{}, err
	}
	if asleep { // its guest boots; what was in its memory is lost
		s.dropMemory(v.ID)
	}
	return s.start(ctx, v)
}

// Stop asks the guest to shut down, waits for Settings.StopTimeout, then ends
// the VMM. It returns when the VMM is gone. A VM without a machine is stopped
// already.
func (s *Service) Stop(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "stop", s.ensureStopped)
}

func (s *Service) ensureStopped(ctx context.Context, v VM) (VM, error) {
	in, err := s.holder(ctx, v)
	if err != nil {
		return VM{}, err
	}
	if in == nil {
		if v.State == Stopped {
			return v, nil
		}
		s.stopPersisting(v.ID)
		s.unhang(ctx, v)
		return s.update(ctx, v.ID, func(v *VM) {
			reason := ""
			if v.Sleep != nil {
				reason = "stopped while it slept; what was in its memory is lost"
			}
			v.State, v.StateReason, v.Intent, v.Machine = Stopped, reason, WantStopped, nil
			v.Sleep, v.Conditions = nil, Conditions{}
		})
	}
	if _, err := s.update(ctx, v.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent = Stopping, "", WantStopped
	}); err != nil {
		return VM{}, err
	}
	reason, err := s.endGracefully(ctx, in)
	if err != nil {
		return VM{}, err
	}
	return s.settle(ctx, v, in, reason)
}

// settle stores that a VM is stopped after its machine was ended.
func (s *Service) settle(ctx context.Context, v VM, in *instance, reason string) (VM, error) {
	s.release(v.ID, in)
	s.dismantle(ctx, v, in)
	return s.setState(ctx, v.ID, Stopped, reason)
}

// endGracefully ends a machine, the guest's own way if it will, and says how.
func (s *Service) endGracefully(ctx context.Context, in *instance) (reason string, err error) {
	patience, cancel := context.WithTimeout(ctx, s.settings.StopTimeout)
	defer cancel()
	s.askToShutDown(patience, in)
	select {
	case <-in.machine.Exited():
		return "stopped on request", nil
	case <-patience.Done():
	}
	if err := s.end(ctx, in); err != nil {
		return "", err
	}
	return fmt.Sprintf("stopped on request; the guest did not shut down within %s and was ended", s.settings.StopTimeout), nil
}

// agentPatience bounds the wait for an agent's answer before the power button
// is tried.
const agentPatience = 3 * time.Second

func (s *Service) askToShutDown(ctx context.Context, in *instance) {
	if err := in.machine.Resume(ctx); err != nil { // a paused guest hears nothing
		s.deps.Log.Debug("cannot resume before a stop", "err", err)
	}
	asked, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	if in.guest.Shutdown(asked, false) == nil {
		return
	}
	if err := in.machine.PowerButton(ctx); err != nil {
		s.deps.Log.Debug("cannot press the power button", "err", err)
	}
}

// killPatience bounds the wait for a killed process to be gone.
const killPatience = 30 * time.Second

func (s *Service) end(ctx context.Context, in *instance) error {
	bounded, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if err := in.machine.Kill(bounded); err != nil {
		return fmt.Errorf("cannot end the VMM: %w", err)
	}
	return nil
}

// endHeld ends the VM's machine, and lets go of it.
func (s *Service) endHeld(ctx context.Context, id string, in *instance) error {
	if err := s.end(ctx, in); err != nil {
		return err
	}
	s.release(id, in)
	s.letGo(id, in)
	return nil
}

// Restart stops a VM as Stop does, and starts it again.
func (s *Service) Restart(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "restart", func(ctx context.Context, v VM) (VM, error) {
		stopped, err := s.ensureStopped(ctx, v)
		if err != nil {
			return VM{}, err
		}
		return s.ensureStarted(ctx, stopped)
	})
}

// Pause makes the guest's CPUs stand still. Pausing a paused VM is no error.
func (s *Service) Pause(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "pause", func(ctx context.Context, v VM) (VM, error) {
		in, err := s.running(ctx, v, "pause")
		if err != nil {
			return VM{}, err
		}
		if err := in.machine.Pause(ctx); err != nil {
			return VM{}, fmt.Errorf("cannot pause the VM: %w", err)
		}
		return s.update(ctx, v.ID, func(v *VM) { v.State, v.StateReason = Paused, "paused on request" })
	})
}

// Resume lets a paused guest go on. Resuming a running VM is no error.
func (s *Service) Resume(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "resume", func(ctx context.Context, v VM) (VM, error) {
		in, err := s.running(ctx, v, "resume")
		if err != nil {
			return VM{}, err
		}
		if err := in.machine.Resume(ctx); err != nil {
			return VM{}, fmt.Errorf("cannot resume the VM: %w", err)
		}
		s.setClock(v.ID, in)
		return s.update(ctx, v.ID, func(v *VM) { v.State, v.StateReason = Running, "" })
	})
}

// clockPatience bounds the wait for a guest to set its clock.
const clockPatience = 10 * time.Second

// setClock tells a guest that has stood the time, in the background: one without
// an agent that answers goes on all the same.
func (s *Service) setClock(id string, in *instance) {
	s.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), clockPatience)
		defer cancel()
		if err := in.guest.SetClock(ctx); err != nil {
			s.deps.Log.Debug("a guest that has stood could not be told the time", "vm", id, "err", err)
		}
	})
}

// running returns the machine of a VM, or a conflict that says what to do.
func (s *Service) running(ctx context.Context, v VM, verb string) (*instance, error) {
	in, err := s.holder(ctx, v)
	if in != nil || err != nil {
		return in, err
	}
	hint := "start it first"
	if v.Sleep != nil {
		hint = "wake it first"
	}
	return nil, errs.New(errs.Conflict, "vm_not_running", "cannot %s VM %s: it is %s", verb, v.ID, v.State).WithHint("%s", hint)
}

// Delete ends the VM, whatever it does, and removes everything of it.
func (s *Service) Delete(ctx context.Context, owner, id string) error {
	_, err := s.operate(ctx, owner, id, "delete", s.remove)
	return err
}

func (s *Service) remove(ctx context.Context, v VM) (VM, error) {
	if _, err := s.update(ctx, v.ID, func(v *VM) { v.Intent = WantDeleted }); err != nil {
		return VM{}, err
	}
	if err := s.endForDelete(ctx, v); err != nil {
		return VM{}, err
	}
	s.stopPersisting(v.ID)
	s.unhang(ctx, v)
	if err := s.deps.Files.Remove(v.ID); err != nil {
		return VM{}, fmt.Errorf("cannot remove the VM's files: %w", err)
	}
	if err := s.deps.Store.DeleteVM(ctx, v.ID); err != nil {
		return VM{}, err
	}
	s.changes.announce(v.ID)
	return VM{}, nil
}

func (s *Service) endForDelete(ctx context.Context, v VM) error {
	switch {
	case v.Copying != "" && v.Machine == nil:
		return nil
	case v.Copying != "":
		return s.endMachine(ctx, *v.Machine)
	}
	in, err := s.holder(ctx, v)
	if in == nil || err != nil {
		return err
	}
	return s.endHeld(ctx, v.ID, in)
}

// holder returns the machine of a VM, or nil when no process of it lives. A
// process that this daemon could not take over before is tried once more: what
// it holds must not be given away while it lives. One whose guest is not itself
// is not taken over.
func (s *Service) holder(ctx context.Context, v VM) (*instance, error) {
	if v.Copying != "" {
		return nil, errs.New(errs.Conflict, "vm_half_copied", "cannot operate on VM %s: its guest was to become a copy of another, and failed to", v.ID).
			WithHint("delete the VM")
	}
	if in := s.instanceOf(v.ID); in != nil || v.Machine == nil {
		return in, nil
	}
	in, err := s.takeOver(ctx, v, *v.Machine)
	switch {
	case errs.Is(err, errs.NotFound):
		return nil, nil
	case err != nil:
		return nil, errs.New(errs.Unavailable, "machine_out_of_reach", "cannot operate on VM %s: its VMM lives, but does not answer", v.ID).
			WithHint("try again; hatchd's log says what is wrong with process %d", v.Machine.PID).WithCause(err)
	}
	s.watch(v.ID, in)
	return in, nil
}
