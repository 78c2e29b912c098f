// Package recovery makes the host and the store agree after hatchd has started:
// it adopts live machines, finishes deletes, stops and restores that were cut
// short, reaps machines without a VM, and stores why other VMs do not run.
//
// It touches only what is provably ours. Start at [Service.Run].
package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/power"
	"github.com/hatchvm/hatch/internal/vm/transition"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Store is what recovery needs of the database.
type Store interface {
	vm.Reader
	vm.Lister
}

// Config is what the service needs. All fields are required.
type Config struct {
	Store    Store
	Files    vm.Files
	Memories vm.Memories
	Network  network.Attacher
	Runner   *operation.Runner
	Engine   *transition.Engine
	Live     *live.Registry
	Power    *power.Service
	Log      *slog.Logger
}

// Service recovers after a start of hatchd.
type Service struct{ Config }

// New returns a service.
func New(cfg Config) *Service { return &Service{cfg} }

// Run recovers all VMs and then lets operations on them begin; creates do not
// wait for it. root is the directory below which the run directories lie.
func (s *Service) Run(ctx context.Context, root string) error {
	interrupted, err := s.reconcileAll(ctx, root)
	s.Runner.Open()
	for _, v := range interrupted {
		s.Runner.Go(func() {
			_, err := s.Runner.Run(context.WithoutCancel(ctx), operation.Op{Scope: access.Everyone, VMID: v.ID, Name: "stop", Do: s.Power.Stop})
			if err != nil {
				s.Log.Error("cannot repeat a stop that was interrupted", logkey.VM, v.ID, logkey.Error, err)
			}
		})
	}
	return err
}

// reconcileAll goes through machines, rows and files, and returns the VMs whose
// stop was interrupted and must be repeated.
func (s *Service) reconcileAll(ctx context.Context, root string) (interrupted []vm.VM, err error) {
	handles, unlisted := s.Live.List(ctx, root) // before the rows: a new create is in neither
	vms, err := s.Store.AllVMs(ctx)
	if err != nil {
		return nil, err
	}
	failures := s.reconcileEach(ctx, vms, handles, unlisted)
	known := map[string]bool{}
	for _, v := range vms {
		known[v.ID] = true
		if v.State == vm.Stopping && v.Autostart == vm.NoAutostart && s.Live.Holds(v.ID) {
			interrupted = append(interrupted, v)
		}
	}
	for id, h := range handles {
		if !known[id] {
			s.Log.Warn("reaping a machine that has no vm", logkey.VM, h.ID, logkey.PID, h.PID)
			failures = append(failures, s.Live.Kill(ctx, h))
		}
	}
	failures = append(failures, s.releaseUnused(ctx), s.setOrphansAside(ctx, known))
	return interrupted, errors.Join(failures...)
}

// atOnce bounds how many VMs are recovered at a time: a VMM that does not
// answer must not delay all others.
const atOnce = 16

func (s *Service) reconcileEach(ctx context.Context, vms []vm.VM, handles map[string]vmm.Handle, unlisted map[string]error) []error {
	failures := make([]error, len(vms))
	var each errgroup.Group
	each.SetLimit(atOnce)
	for i, v := range vms {
		each.Go(func() error {
			if s.busy(v.ID) {
				return nil // created since the start
			}
			err := unlisted[v.Driver]
			if err == nil {
				err = s.reconcile(ctx, v, handles[v.ID])
			}
			if err != nil {
				failures[i] = fmt.Errorf("%s: %w", v.ID, err)
			}
			return nil
		})
	}
	_ = each.Wait() // failures keeps them in order instead
	return failures
}

// busy reports whether this hatchd operates on the VM already.
func (s *Service) busy(id string) bool { return s.Runner.Locked(id) || s.Live.Holds(id) }

// reconcile brings one VM of an earlier hatchd into a phase that is true.
func (s *Service) reconcile(ctx context.Context, v vm.VM, h vmm.Handle) error {
	unlock, err := s.Runner.Lock(ctx, v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if v, err = s.Store.VM(ctx, access.Everyone, v.ID); err != nil || s.Live.Holds(v.ID) {
		return ignoreNotFound(err) // created, changed or deleted since it was listed
	}
	if h.PID == 0 && v.Machine != nil {
		h = *v.Machine // the driver did not list it; that it is gone must be proven
	}
	if !v.Restoring() { // what an uncommitted restore has staged
		if err := s.Files.Unstage(v.ID); err != nil {
			s.Log.Error("cannot remove the staged files of a restore", logkey.VM, v.ID, logkey.Error, err)
		}
	}
	if v.Unconfirmed == "" && (v.State.Live() || v.Asleep()) { // first: clients need not wait for a VMM that is slow to answer
		if err := s.Engine.Forward(v); err != nil {
			s.Log.Error("cannot listen on all ports of a vm", logkey.VM, v.ID, logkey.Error, err)
		}
	}
	switch {
	case v.Asleep():
		return s.reconcileAsleep(ctx, v, h)
	case v.Unconfirmed != "":
		return s.removeUnconfirmed(ctx, v, h)
	}
	return s.reconcileAwake(ctx, v, h)
}

func (s *Service) reconcileAwake(ctx context.Context, v vm.VM, h vmm.Handle) error {
	if err := s.Memories.Forget(v.ID); err != nil { // of a sleep or wake that was cut short
		return err
	}
	m, err := s.Live.AdoptMachine(ctx, v, h)
	gone := errs.Is(err, errs.NotFound)
	switch {
	case err != nil && !gone:
		return err
	case v.Intent == vm.IntentDeleted:
		return s.delete(ctx, v)
	case gone:
		return s.explainGone(ctx, v)
	}
	return s.rejoin(ctx, v, m, h)
}

// delete finishes a delete that was cut short. Precondition: the VM's lock is held.
func (s *Service) delete(ctx context.Context, v vm.VM) error {
	_, err := s.Runner.Record(ctx, v, "delete", s.Power.Delete)
	return err
}

func ignoreNotFound(err error) error {
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// rejoin puts back what hangs on an adopted machine: watcher, link, row.
func (s *Service) rejoin(ctx context.Context, v vm.VM, m *live.Machine, h vmm.Handle) error {
	defer s.Live.Watch(v.ID, m) // a report is dropped before the row says that the VM runs
	paused, err := s.resumeIfUnasked(ctx, v, m)
	if err != nil { // the heartbeat continues this
		s.Log.Warn("the VMM of an adopted VM does not answer", logkey.VM, v.ID, logkey.PID, h.PID, logkey.Error, err)
		paused = v.State == vm.Paused
	}
	failures := []error{s.Engine.EmptyMemory(v)} // what a save that was cut short has filled
	if v.EnableNetwork {
		failures = append(failures, s.Network.Reattach(ctx, v.Link()))
	}
	if v.Machine != nil {
		h.Base = v.Machine.Base
		h.Version = cmp.Or(h.Version, v.Machine.Version)
	}
	_, err = s.Runner.Update(ctx, v.ID, vm.ToAdopted(h, paused, vm.Now()))
	s.Log.Info("vm adopted", logkey.VM, v.ID, logkey.PID, h.PID)
	return errors.Join(append(failures, err)...)
}

// answerTimeout is how long a VMM may take to answer while others wait for the end of
// the recovery.
const answerTimeout = 3 * time.Second

// resumeIfUnasked lets the guest run, unless it is paused on request: hatchd may have
// ended before the guest's first instruction. It reports whether the guest is paused.
func (s *Service) resumeIfUnasked(ctx context.Context, v vm.VM, m *live.Machine) (paused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	paused, err = m.Paused(ctx)
	if err != nil || !paused || v.State == vm.Paused {
		return paused, err
	}
	return false, m.Resume(ctx)
}

// explainGone stores why a VM that should have a machine has none. One that the
// restart of the host has ended comes back.
func (s *Service) explainGone(ctx context.Context, v vm.VM) error {
	if !v.State.Live() {
		return nil
	}
	s.Engine.Teardown(ctx, v)
	change := vm.ToStopped("the VMM ended while hatchd was not running; the cause is unknown")
	switch {
	case v.State == vm.Starting && v.Autostart != vm.NoAutostart:
		change = vm.DownWithHost(vm.ToStopped("hatchd ended before the VM was back after the restart of the host"))
	case v.State == vm.Starting:
		return s.Power.AbandonStart(ctx, v)
	case v.State == vm.Stopping && v.Autostart != vm.NoAutostart:
		change = vm.DownWithHost(vm.ToStopped("stopped for the shutdown of the host"))
	case v.State == vm.Stopping:
		change = vm.ToStopped("stopped on request")
	case v.Machine != nil && s.Live.HostRestarted(*v.Machine):
		change = vm.DownWithHost(vm.ToStopped("the host was restarted"))
	}
	_, err := s.Runner.Update(ctx, v.ID, change)
	return err
}

// reconcileAsleep brings a VM that slept when hatchd ended, or was being woken,
// back to sleep. A machine of it has not let its guest run, and is killed.
func (s *Service) reconcileAsleep(ctx context.Context, v vm.VM, h vmm.Handle) error {
	if err := s.Live.Kill(ctx, h); err != nil {
		return err
	}
	if v.Intent == vm.IntentDeleted {
		return s.delete(ctx, v)
	}
	if v.Restoring() {
		var err error
		if v, err = s.Power.FinishRestore(ctx, v); err != nil {
			return err
		}
	}
	if !s.Memories.Has(v.ID, v.Sleep.Durable) {
		s.Engine.Teardown(ctx, v)
		lost := vm.ToStopped("the host was restarted before the memory of the sleeping VM was on disk")
		_, err := s.Runner.Update(ctx, v.ID, vm.DownWithHost(lost))
		return err
	}
	s.Engine.DetachLink(ctx, v)
	if v.Sleep.Durable {
		if err := s.Memories.Release(v.ID); err != nil {
			return err
		}
	}
	if v.State == vm.Snapshotted {
		s.Power.Persist(v)
		return nil
	}
	return s.Power.SleepOn(ctx, v, *v.Sleep, "asleep; hatchd ended while the VM was being woken")
}

// removeUnconfirmed kills a clone that has not taken its own identity, and deletes
// its VM, unless that can boot instead.
func (s *Service) removeUnconfirmed(ctx context.Context, v vm.VM, h vmm.Handle) error {
	if err := s.Live.Kill(ctx, h); err != nil {
		reason := "hatchd ended while the VM was being cloned, and its VMM could not be ended"
		_, storeErr := s.Runner.Update(ctx, v.ID, vm.ToFailed(reason, false, &h))
		return errors.Join(err, storeErr)
	}
	s.Engine.Teardown(ctx, v)
	if v.Unconfirmed == vm.FromWarm && v.Intent != vm.IntentDeleted {
		return s.Power.AbandonStart(ctx, v)
	}
	s.Log.Warn("deleting a clone interrupted by a restart of hatchd", logkey.VM, v.ID)
	return errors.Join(s.Files.Remove(v.ID), s.Power.Forget(ctx, v.ID))
}

// releaseUnused frees memory in RAM that no VM uses: a machine or an earlier
// hatchd ended without freeing it.
func (s *Service) releaseUnused(ctx context.Context) error {
	held, err := s.Memories.Held()
	if err != nil {
		return err
	}
	failures := []error{}
	for _, id := range held {
		if !s.busy(id) {
			failures = append(failures, s.releaseIfUnused(ctx, id))
		}
	}
	return errors.Join(failures...)
}

func (s *Service) releaseIfUnused(ctx context.Context, id string) error {
	unlock, err := s.Runner.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := s.Store.VM(ctx, access.Everyone, id) // the zero VM when it does not exist
	if err := ignoreNotFound(err); err != nil {
		return err
	}
	if v.Machine != nil || v.State.Live() || v.Volatile() {
		return nil
	}
	s.Log.Warn("freeing memory that no vm uses", logkey.VM, id)
	return s.Memories.Release(id)
}

// setOrphansAside moves run directories away that have no VM. Neither a create
// nor a delete leaves one, however it ends, so the database may be the wrong
// one: nothing is deleted.
func (s *Service) setOrphansAside(ctx context.Context, known map[string]bool) error {
	orphans, err := s.Files.Orphans(known)
	if err != nil {
		return err
	}
	var failures []error
	for _, id := range orphans {
		if _, err := s.Store.VM(ctx, access.Everyone, id); !errs.Is(err, errs.NotFound) {
			continue // created since the start, or the database does not answer
		}
		s.Log.Warn("setting files aside that have no vm", logkey.VM, id)
		failures = append(failures, s.Files.SetAside(id))
	}
	return errors.Join(failures...)
}
