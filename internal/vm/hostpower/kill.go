package hostpower

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
)

// killTimeout bounds how long killing takes that follows after Timeout.
const killTimeout = 10 * time.Second

// stoppedReason begins the reason of a VM that was stopped with the host.
const stoppedReason = "stopped for the shutdown of the host"

// killHeld kills the machines that this hatchd holds, and stores nothing.
func (s *Service) killHeld(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return s.Live.KillAll(ctx)
}

// killLeft kills the machines that VMs still have, all at once, and stores that, and
// which memory is not on disk. failed says why VMs could not be stopped.
func (s *Service) killLeft(ctx context.Context, failed map[string]error) error {
	ending, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	vms, err := s.Store.AllVMs(ending)
	if err != nil {
		return errors.Join(err, s.killHeld(ctx))
	}
	failures := make([]error, len(vms))
	var each sync.WaitGroup
	for i, v := range vms {
		switch {
		case mayHaveMachine(v):
			each.Go(func() { failures[i] = s.kill(ending, v, failed[v.ID]) })
		case v.Volatile():
			s.Power.RecordUnsaved(ending, v.ID, fmt.Sprintf("it was not saved within %s", s.Timeout))
		}
	}
	each.Wait()
	return errors.Join(failures...)
}

// kill ends the VM's machine if it still has one, and stores that. The kill needs
// no lock: it ends the operation that has not ended in time.
func (s *Service) kill(ctx context.Context, v vm.VM, failed error) error {
	m, err := s.Live.Get(ctx, v, live.Held)
	switch {
	case err != nil:
		return err
	case m != nil:
		s.Live.Remove(v.ID, m) // else its watcher would store the end
		err = s.Engine.End(ctx, m)
	case v.Machine != nil:
		err = s.Live.Kill(ctx, *v.Machine)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", v.ID, err)
	}
	unlock, err := s.Runner.Lock(ctx, v.ID)
	if err != nil {
		return fmt.Errorf("%s: its VMM was killed, but an operation has not ended: %w", v.ID, err)
	}
	defer unlock()
	if m != nil {
		s.Live.Leave(v.ID, m)
	}
	return s.recordKill(ctx, v.ID, s.killReason(v, m != nil, failed))
}

// killReason says why a VM was killed. One that is being stopped and has no machine
// any more has stopped; that could not be stored then.
func (s *Service) killReason(v vm.VM, held bool, failed error) string {
	const killed = "killed for the shutdown of the host: the VM "
	switch {
	case v.State == vm.Stopping && !held:
		return stoppedReason
	case failed != nil:
		return killed + "could not be stopped: " + errs.Public(failed)
	default:
		return fmt.Sprintf(killed+"was not down within %s", s.Timeout)
	}
}

// recordKill stores that the VM's machine was killed, unless its memory was saved
// before or its start has failed. Precondition: the VM's lock is held.
func (s *Service) recordKill(ctx context.Context, id, reason string) error {
	v, err := s.Store.VM(ctx, access.Everyone, id)
	if errs.Is(err, errs.NotFound) || v.Asleep() || v.State == vm.Failed {
		return nil
	}
	if err != nil {
		return err
	}
	s.Log.Warn("vm ended for the shutdown of the host", logkey.VM, id, logkey.Reason, reason)
	s.Engine.Teardown(ctx, v)
	_, err = s.Runner.Update(ctx, id, vm.DownWithHost(vm.ToStopped(reason)))
	return err
}
