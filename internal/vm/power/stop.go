package power

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// StopRequested is the reason of a stop that a client has asked for.
const StopRequested = "stopped on request"

// Stop is StopWithin with StopTimeout, on request.
func (s *Service) Stop(ctx context.Context, v vm.VM) (vm.VM, error) {
	return s.StopWithin(ctx, v, s.StopTimeout, StopRequested)
}

// StopWithin asks the guest to shut down, waits for the timeout, then kills the VMM,
// and returns when it is gone. With a timeout of 0 it kills at once. A VM without a
// machine is stopped already; the saved memory of a sleeping one is lost. reason is what
// the row says.
func (s *Service) StopWithin(ctx context.Context, v vm.VM, timeout time.Duration, reason string) (vm.VM, error) {
	m, err := s.Live.Get(ctx, v, live.Adopt)
	if err != nil {
		return vm.VM{}, err
	}
	if m == nil {
		return s.stopWithoutMachine(ctx, v, reason)
	}
	return s.stop(ctx, v, m, timeout, reason, s.Runner.Update)
}

// StopWithHost is Stop for a VM with a machine while the host shuts down: hatchd
// starts the VM again when it starts. reason is what the row says.
func (s *Service) StopWithHost(ctx context.Context, v vm.VM, reason string) (vm.VM, error) {
	m, err := s.Live.Running(ctx, v, "stop")
	if err != nil {
		return vm.VM{}, err
	}
	return s.stop(ctx, v, m, s.StopTimeout, reason, withHost(s.Runner))
}

// withHost returns what stores a change that the shutdown of the host makes.
func withHost(r *operation.Runner) transition.Commit {
	return func(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error) {
		return r.Update(ctx, id, vm.DownWithHost(change))
	}
}

func (s *Service) stop(ctx context.Context, v vm.VM, m *live.Machine, timeout time.Duration, reason string, commit transition.Commit) (vm.VM, error) {
	if _, err := commit(ctx, v.ID, vm.ToStopping); err != nil {
		return vm.VM{}, err
	}
	killed, err := s.shutDown(ctx, m, timeout, s.Runner.Urged(v.ID))
	if err != nil {
		return vm.VM{}, err
	}
	s.Live.Drop(v.ID, m)
	s.Engine.Teardown(ctx, v)
	return commit(ctx, v.ID, vm.ToStopped(reason+killed))
}

func (s *Service) stopWithoutMachine(ctx context.Context, v vm.VM, reason string) (vm.VM, error) {
	if v.State == vm.Stopped {
		return s.leaveDown(ctx, v)
	}
	s.persister.stop(v.ID)
	s.Engine.Teardown(ctx, v)
	switch requested := reason == StopRequested; {
	case requested && v.Asleep():
		reason = "stopped while it slept; the content of its memory is lost"
	case requested:
		reason = ""
	case v.Asleep():
		reason += "; it slept, and the content of its memory is lost"
	}
	return s.Runner.Update(ctx, v.ID, vm.ToStopped(reason))
}

// leaveDown returns a VM that is as the caller wants it, and stays so even if it
// went down with the host.
func (s *Service) leaveDown(ctx context.Context, v vm.VM) (vm.VM, error) {
	if v.Autostart == vm.NoAutostart {
		return v, nil
	}
	return s.Runner.Update(ctx, v.ID, vm.ToStaying(""))
}

// agentTimeout bounds the wait for an agent's answer before the power button
// is tried, too.
const agentTimeout = 3 * time.Second

// shutDown ends a machine, by the guest itself if it reacts, else by a kill: killed
// says so then. The guest of a silent VMM may still run, and its agent be reached.
// It does not wait any longer once urged is closed.
func (s *Service) shutDown(ctx context.Context, m *live.Machine, timeout time.Duration, urged <-chan struct{}) (killed string, err error) {
	if timeout == 0 {
		return "; it was killed at once, as requested", s.Engine.End(context.WithoutCancel(ctx), m)
	}
	silent := m.Silent(ctx)
	graceful, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if !silent {
		if err := m.Resume(graceful); err != nil { // a paused guest cannot react
			s.Log.Debug("cannot resume before a stop", logkey.Error, err)
		}
	}
	heard, refused := make(chan struct{}), make(chan struct{})
	go func() { // goes on to the end: the agent of a guest that boots answers later
		defer close(refused)
		_ = m.Guest.Shutdown(graceful, false, sync.OnceFunc(func() { close(heard) }))
	}()
	defer func() { cancel(); <-refused }()
	unheard := time.NewTimer(agentTimeout)
	defer unheard.Stop()
	asked := false
	select {
	case <-heard:
		asked = true
	case <-m.Exited():
		return "", nil
	case <-refused:
	case <-unheard.C:
	case <-urged:
	}
	if !asked && silent {
		return "; neither its VMM nor its agent answered, and it was killed", s.Engine.End(context.WithoutCancel(ctx), m)
	}
	if !asked {
		if err := m.PowerButton(graceful); err != nil {
			s.Log.Debug("cannot press the power button", logkey.Error, err)
		}
	}
	select {
	case <-m.Exited():
		return "", nil
	case <-urged:
		return "; it was killed for another request, before the guest had shut down", s.Engine.End(context.WithoutCancel(ctx), m)
	case <-graceful.Done():
	}
	if err := s.Engine.End(context.WithoutCancel(ctx), m); err != nil {
		return "", err
	}
	return fmt.Sprintf("; the guest did not shut down within %s and was killed", timeout), nil
}

// ShutDownHeld ends the machine that this hatchd holds of a VM, if it does, as Stop
// would, and stores nothing: for a host that shuts down without its database. The
// next hatchd sees a VM that the host's end has cut off.
func (s *Service) ShutDownHeld(ctx context.Context, id string) error {
	m, err := s.Live.Get(ctx, vm.VM{ID: id}, live.Held)
	if m == nil || err != nil || !s.Live.Remove(id, m) { // removed, because its watcher would store the end
		return err
	}
	defer s.Live.Leave(id, m)
	_, err = s.shutDown(ctx, m, s.StopTimeout, nil)
	return err
}
