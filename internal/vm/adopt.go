package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Adopt makes the host and the store agree after the daemon has started: it
// takes over live machines, finishes deletes and stops that were cut short,
// ends machines that are provably ours and have no VM, and says of the other
// VMs why they do not run. Until it returns, operations on VMs wait; creates
// do not. root is the directory below which the run directories lie.
func (s *Service) Adopt(ctx context.Context, root string) error {
	cutShort, err := s.reconcileAll(ctx, root)
	close(s.adopted)
	for _, v := range cutShort {
		s.work.Go(func() {
			if _, err := s.Stop(context.WithoutCancel(ctx), v.OwnerID, v.ID); err != nil {
				s.deps.Log.Error("cannot go on with a stop", "vm", v.ID, "err", err)
			}
		})
	}
	return err
}

// reconcileAll goes through machines, rows and files, and returns the VMs whose
// stop was cut short and must be asked for again.
func (s *Service) reconcileAll(ctx context.Context, root string) (cutShort []VM, err error) {
	found, deaf := s.machines(ctx, root) // before the rows: a new create is in neither
	vms, err := s.deps.Store.AllVMs(ctx)
	if err != nil {
		return nil, err
	}
	faults := s.reconcileEach(ctx, vms, found, deaf)
	known := map[string]bool{}
	for _, v := range vms {
		known[v.ID] = true
		if v.State == Stopping && s.instanceOf(v.ID) != nil {
			cutShort = append(cutShort, v)
		}
	}
	for id, h := range found {
		if !known[id] {
			faults = append(faults, s.reap(ctx, h))
		}
	}
	faults = append(faults, s.releaseUnused(ctx), s.removeOrphans(ctx, known))
	return cutShort, errors.Join(faults...)
}

// adoptAtOnce bounds how many VMs are taken over at a time: a VMM that does not
// answer shall not hold up all others.
const adoptAtOnce = 8

func (s *Service) reconcileEach(ctx context.Context, vms []VM, found map[string]vmm.Handle, deaf map[string]error) []error {
	faults := make([]error, len(vms))
	var each errgroup.Group
	each.SetLimit(adoptAtOnce)
	for i, v := range vms {
		each.Go(func() error {
			if s.busy(v.ID) {
				return nil // created since we began
			}
			err := deaf[v.Driver]
			if err == nil {
				err = s.reconcile(ctx, v, found[v.ID])
			}
			if err != nil {
				faults[i] = fmt.Errorf("%s: %w", v.ID, err)
			}
			return nil
		})
	}
	_ = each.Wait() // the faults are kept in their order instead
	return faults
}

// machines lists what every driver finds of ours, by VM id. A driver that cannot
// tell is an entry of deaf, with the reason, and holds up no other.
func (s *Service) machines(ctx context.Context, root string) (found map[string]vmm.Handle, deaf map[string]error) {
	found, deaf = map[string]vmm.Handle{}, map[string]error{}
	for name, d := range s.deps.Drivers {
		handles, err := d.List(ctx, root)
		if err != nil {
			s.deps.Log.Error("cannot list the machines of a driver; its VMs are left as they are", "driver", name, "err", err)
			deaf[name] = fmt.Errorf("cannot list the machines of driver %s: %w", name, err)
		}
		for _, h := range handles {
			found[h.ID] = h
		}
	}
	return found, deaf
}

// busy reports whether this daemon already operates on the VM.
func (s *Service) busy(id string) bool {
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	return s.locks.by[id] != nil || s.instanceOf(id) != nil
}

// reconcile brings one VM from before the restart to a state that is true.
func (s *Service) reconcile(ctx context.Context, v VM, h vmm.Handle) error {
	unlock, err := s.locks.lock(ctx, v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if v, err = s.deps.Store.VM(ctx, "", v.ID); err != nil || s.instanceOf(v.ID) != nil {
		return ignoreNotFound(err) // created, changed or deleted since it was listed
	}
	if h.PID == 0 && v.Machine != nil {
		h = *v.Machine // the driver did not list it; that it is gone must be proven
	}
	if v.Sleep == nil || !v.Sleep.Staged {
		s.unstage(v.ID) // of a restore that was cut short before it counted
	}
	if v.Sleep != nil {
		return s.reconcileAsleep(ctx, v, h)
	}
	if v.Copying != "" {
		return s.removeHalfCopied(ctx, v, h)
	}
	if err := s.deps.Memories.Forget(v.ID); err != nil { // of a sleep or a wake that was cut short
		return err
	}
	in, err := s.takeOver(ctx, v, h)
	gone := errs.Is(err, errs.NotFound)
	switch {
	case err != nil && !gone:
		return err
	case v.Intent == WantDeleted:
		_, err = s.told(ctx, v, "delete", s.remove)
		return err
	case gone:
		return s.explainGone(ctx, v)
	}
	return s.rejoin(ctx, v, in, h)
}

var errNoMachine = errs.New(errs.NotFound, "no_machine", "no machine")

// adopt adopts a machine through its driver. Of one whose driver cannot be used
// any more nobody can tell whether it lives, unless the host was restarted.
func (s *Service) adopt(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	if d, ok := s.deps.Drivers[h.Driver]; ok {
		return d.Adopt(ctx, h)
	}
	if h.BootID != bootID() {
		return nil, errNoMachine
	}
	return nil, noDriver(h.ID, h.Driver)
}

// takeOver adopts the VM's machine. Errors: errs.NotFound when there is none.
func (s *Service) takeOver(ctx context.Context, v VM, h vmm.Handle) (*instance, error) {
	if h.PID == 0 {
		return nil, errNoMachine
	}
	m, err := s.adopt(ctx, h)
	if err != nil {
		return nil, err
	}
	connect := s.deps.Guests.Connect
	if v.Conditions.Agent.Reason == reasonWaking { // no agent has heard yet that it slept
		connect = s.deps.Guests.Rejoin
	}
	in, err := s.join(v.ID, m, connect)
	if err != nil {
		_ = m.Close()
		return nil, err
	}
	s.hold(v.ID, in)
	return in, nil
}

func ignoreNotFound(err error) error {
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// rejoin makes an adopted VM whole again: watcher, network, forward, row.
func (s *Service) rejoin(ctx context.Context, v VM, in *instance, h vmm.Handle) error {
	s.watch(v.ID, in)
	paused, err := in.machine.Paused(ctx)
	if err != nil {
		return fmt.Errorf("cannot ask the machine for its state: %w", err)
	}
	if paused && v.State != Paused { // the daemon ended before the guest's first instruction
		if err := in.machine.Resume(ctx); err != nil {
			return fmt.Errorf("cannot let the guest run: %w", err)
		}
		paused = false
	}
	faults := []error{s.emptyMemory(v)} // of a save that was cut short
	if v.EnableNetwork {
		faults = append(faults, s.deps.Network.Reattach(ctx, v.Link()), s.forward(v))
	}
	if v.Machine != nil {
		h.Base = v.Machine.Base
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	_, err = s.update(ctx, v.ID, func(v *VM) {
		if v.StartedAt == nil || v.State == Starting {
			v.StartedAt, v.Conditions = &now, bootConditions(v, now)
		}
		v.State, v.StateReason, v.Machine, v.Provisioned = Running, "", &h, true
		if paused {
			v.State = Paused
		}
	})
	s.deps.Log.Info("vm adopted", "vm", v.ID, "pid", h.PID)
	return errors.Join(append(faults, err)...)
}

// explainGone stores why a VM that should have a machine has none.
func (s *Service) explainGone(ctx context.Context, v VM) error {
	if !v.State.Live() {
		return nil
	}
	s.unhang(ctx, v)
	if v.State == Starting {
		return s.abandonStart(ctx, v)
	}
	_, err := s.update(ctx, v.ID, func(v *VM) {
		v.State, v.StateReason = Stopped, goneReason(*v)
		v.Intent, v.Machine, v.Conditions = WantStopped, nil, Conditions{}
	})
	return err
}

func goneReason(v VM) string {
	if v.State == Stopping {
		return "stopped on request"
	}
	if v.Machine != nil && v.Machine.BootID != bootID() {
		return "the host was restarted"
	}
	return "the VMM ended while hatchd was not running; how is not known"
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// abandonStart cleans up a start that the daemon's end cut short.
func (s *Service) abandonStart(ctx context.Context, v VM) error {
	if !v.Provisioned {
		if err := s.deps.Files.Remove(v.ID); err != nil {
			return err
		}
		s.releaseLease(ctx, v.ID)
	}
	if v.Copying != "" { // it can boot, now that the copy is gone
		if _, err := s.update(ctx, v.ID, func(v *VM) { v.Copying = "" }); err != nil {
			return err
		}
	}
	return s.fail(ctx, v.ID, v.Provisioned, "hatchd ended while the VM was being started; start it again", nil)
}

// reap ends a machine that is ours and has no VM.
func (s *Service) reap(ctx context.Context, h vmm.Handle) error {
	s.deps.Log.Warn("ending a machine that has no VM", "vm", h.ID, "pid", h.PID)
	return s.endMachine(ctx, h)
}

// endMachine ends a machine that this daemon does not hold. The zero handle
// stands for none.
func (s *Service) endMachine(ctx context.Context, h vmm.Handle) error {
	if h.PID == 0 {
		return nil
	}
	m, err := s.adopt(ctx, h)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	return m.Kill(ctx)
}

// removeOrphans sets run directories aside that have no VM. Neither a create
// nor a delete leaves one, however it ends, so the database may be the one that
// is wrong: nothing is deleted.
func (s *Service) removeOrphans(ctx context.Context, known map[string]bool) error {
	orphans, err := s.deps.Files.Orphans(known)
	if err != nil {
		return err
	}
	var faults []error
	for _, id := range orphans {
		if _, err := s.deps.Store.VM(ctx, "", id); !errs.Is(err, errs.NotFound) {
			continue // created since we began, or the database does not answer
		}
		s.deps.Log.Warn("setting files aside that have no VM", "vm", id)
		faults = append(faults, s.deps.Files.SetAside(id))
	}
	return errors.Join(faults...)
}
