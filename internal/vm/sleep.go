package vm

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Sleep keeps a running VM's memory, ends its VMM and returns once that is
// gone. The VM keeps all that is reserved for it, and its SSH port stays open.
// A sleeping VM is returned as it is.
//
// Errors: errs.Conflict when it does not run; errs.Exhausted with code
// disk_full when the host's disk cannot take its memory; errs.Unsupported.
// After an error the guest goes on as before.
func (s *Service) Sleep(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "sleep", s.ensureAsleep)
}

// sleepSteps are what a sleep does, in order. What is stored decides: until the
// row step the VM runs, whatever happens; after it, it sleeps.
func (s *Service) sleepSteps() []step {
	return []step{
		{"room", s.prepareSleep, s.forgetSleep},
		{"save", s.save, s.goOn},
		{"row", s.recordSleep, nil},
	}
}

func (s *Service) ensureAsleep(ctx context.Context, v VM) (VM, error) {
	if v.Sleep != nil {
		return v, nil
	}
	in, err := s.readyToSleep(ctx, v)
	if err != nil {
		return VM{}, err
	}
	began := time.Now()
	b := &boot{vm: v, machine: in.machine, in: in}
	took, failed, err := s.take(ctx, s.sleepSteps(), b)
	if err != nil {
		s.deps.Log.Warn("vm cannot sleep", "vm", v.ID, "step", failed, "err", err)
		return VM{}, err
	}
	if err := s.endAsleep(ctx, b); err != nil {
		return VM{}, err
	}
	s.persist(v.ID)
	s.deps.Log.Info("vm sleeps", "vm", v.ID, "took", time.Since(began), "steps", took)
	return b.vm, nil
}

// readyToSleep returns the machine of a VM that could be put to sleep.
func (s *Service) readyToSleep(ctx context.Context, v VM) (*instance, error) {
	in, err := s.running(ctx, v, "put to sleep")
	if err != nil {
		return nil, err
	}
	if v.State == Paused {
		return nil, errs.New(errs.Conflict, "vm_paused", "cannot put to sleep VM %s: it is paused", v.ID).WithHint("resume it first")
	}
	if !s.canSleep(v) {
		return nil, errs.New(errs.Unsupported, "sleep_unsupported", "cannot put to sleep VM %s: %s cannot save guests here", v.ID, v.Driver).
			WithHint("pause it, or stop it; hatch doctor says what is wrong with %s", v.Driver)
	}
	return in, nil
}

func (s *Service) prepareSleep(ctx context.Context, b *boot) error {
	bytes, err := s.memoryToSave(ctx, b.vm)
	if err != nil {
		return err
	}
	b.sleep = &Sleep{Bytes: bytes}
	return s.withRoom(ctx, b.vm.OwnerID, func() error { return s.deps.Memories.Prepare(b.vm.ID, bytes) })
}

func (s *Service) forgetSleep(_ context.Context, b *boot) {
	if err := s.deps.Memories.Forget(b.vm.ID); err != nil {
		s.deps.Log.Error("cannot remove what was saved of a vm", "vm", b.vm.ID, "err", err)
	}
}

func (s *Service) save(ctx context.Context, b *boot) error {
	spec, err := s.standingSpec(ctx, b.vm, s.deps.Files.Disk(b.vm.ID))
	if err != nil {
		return err
	}
	if err := b.machine.Save(ctx, spec, s.deps.Memories.Dir(b.vm.ID)); err != nil {
		return err
	}
	b.sleep.Bytes, err = s.deps.Memories.Used(b.vm.ID)
	return err
}

func (s *Service) goOn(ctx context.Context, b *boot) {
	if err := b.machine.Resume(ctx); err != nil {
		s.deps.Log.Error("a guest does not go on after a sleep that failed", "vm", b.vm.ID, "err", err)
	}
	if err := s.emptyMemory(b.vm); err != nil {
		s.deps.Log.Error("cannot give the RAM of a sleep that failed back", "vm", b.vm.ID, "err", err)
	}
}

func (s *Service) recordSleep(ctx context.Context, b *boot) error {
	b.sleep.At = time.Now().UTC().Truncate(time.Microsecond)
	v, err := s.update(ctx, b.vm.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent = Snapshotted, "asleep on request", WantAsleep
		v.Machine, v.Sleep = nil, b.sleep
		v.Conditions.Agent = v.Conditions.Agent.moved(False, "Asleep", "the VM sleeps", b.sleep.At)
	})
	if err != nil {
		return err
	}
	b.vm = v
	return nil
}

// endAsleep ends the machine of a VM that sleeps, and takes down what hangs on
// it but for the SSH port. A process that does not end is ended at the next
// start of the daemon; until then the VM cannot be woken, and nothing is lost.
func (s *Service) endAsleep(ctx context.Context, b *boot) error {
	err := s.end(ctx, b.in)
	s.release(b.vm.ID, b.in)
	s.letGo(b.vm.ID, b.in)
	s.detachLink(ctx, b.vm)
	return err
}

// Wake lets a sleeping VM go on where it stood, and returns once its CPUs run.
// A running VM is returned as it is.
//
// Errors: errs.Conflict with code vm_not_asleep when there is nothing to wake,
// or saved_unusable when what was saved is gone, damaged or of another host or
// version; errs.Exhausted. After an error the VM sleeps on.
func (s *Service) Wake(ctx context.Context, owner, id string) (VM, error) {
	return s.operate(ctx, owner, id, "wake", s.ensureAwake)
}

// Rouse wakes the VM if it sleeps, on behalf of somebody who wants to reach it.
// It is quick when it runs. Whoever knocks need not be known: one that did not
// wake lately is not tried again, nor told of, before rouseRest.
func (s *Service) Rouse(ctx context.Context, id string) error {
	if s.instanceOf(id) != nil {
		return nil
	}
	v, err := s.deps.Store.VM(ctx, "", id)
	if err != nil || v.Sleep == nil {
		return err
	}
	return s.rouse(ctx, id)
}

// rouse is Rouse for a VM that slept, or was about to, when it was last read. It
// waits for a sleep or a wake that is under way.
func (s *Service) rouse(ctx context.Context, id string) error {
	unlock, err := s.turn(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.detach(ctx, unlock, func(ctx context.Context) (VM, error) {
		v, err := s.locked(ctx, "", id)
		if err != nil || v.Sleep == nil {
			return v, err
		}
		if err := s.rousings.rests(id); err != nil {
			return VM{}, err
		}
		if v, err = s.told(ctx, v, "wake", s.ensureAwake); err != nil {
			s.rousings.ended(id, err)
		}
		return v, err
	})
	return err
}

// rouseRest is how long a VM that did not wake is left alone by those who knock.
const rouseRest = 30 * time.Second

// rousings are the last ones that failed.
type rousings struct {
	mu     sync.Mutex
	failed map[string]rousing // by VM id; those that are past rouseRest go with the next
}

type rousing struct {
	at  time.Time
	err error
}

func newRousings() *rousings { return &rousings{failed: map[string]rousing{}} }

// rests returns why the VM did not wake, while it is to be left alone.
func (r *rousings) rests(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.failed[id]; ok && time.Since(last.at) < rouseRest {
		return last.err
	}
	return nil
}

func (r *rousings) ended(id string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failed, func(_ string, f rousing) bool { return time.Since(f.at) >= rouseRest })
	delete(r.failed, id)
	if err != nil {
		r.failed[id] = rousing{time.Now(), err}
	}
}

// wakeSteps are what a wake does, in order. Until the row step the VM sleeps,
// whatever happens, because its guest has not run; after it, it runs.
func (s *Service) wakeSteps() []step {
	return []step{
		{"memory", s.recall, s.unrecall},
		{"network", s.attach, s.detachNetwork},
		{"forward", s.openForward, nil},
		{"machine", s.wakeMachine, s.kill},
		{"guest", s.rejoinGuest, s.disconnect},
		{"row", s.recordAwake, nil},
	}
}

func (s *Service) ensureAwake(ctx context.Context, v VM) (VM, error) {
	in, err := s.holder(ctx, v)
	if err != nil {
		return VM{}, err
	}
	switch {
	case in != nil && v.State == Paused:
		return VM{}, errs.New(errs.Conflict, "vm_paused", "cannot wake VM %s: it is paused", v.ID).WithHint("resume it")
	case in != nil:
		return v, nil
	case v.Sleep == nil:
		return VM{}, errs.New(errs.Conflict, "vm_not_asleep", "cannot wake VM %s: it is %s", v.ID, v.State).WithHint("start it")
	}
	v, err = s.lease(ctx, v, s.memoryCapacity)
	if err != nil {
		return VM{}, err
	}
	s.stopPersisting(v.ID)
	return s.wake(ctx, v)
}

// poolsFor returns the pools for a VM's next lease. The port of one that
// sleeps is busy because hatchd itself listens there.
func (s *Service) poolsFor(v VM) Pools {
	pools := s.settings.Pools
	if v.Sleep != nil {
		pools.SSHBusy = nil
	}
	return pools
}

func (s *Service) wake(ctx context.Context, v VM) (VM, error) {
	began := time.Now()
	b := &boot{vm: v, sleep: v.Sleep}
	steps := s.wakeSteps()
	took, failed, err := s.take(ctx, steps, b)
	if err != nil {
		return s.wakeFailed(ctx, b, failed, err)
	}
	if err := b.machine.Resume(ctx); err != nil {
		s.undo(ctx, steps, b)
		s.closeForward(ctx, b)
		s.releaseMemory(ctx, b)
		return s.startFailed(ctx, b, "resume", err)
	}
	s.watch(v.ID, b.in)
	s.forgetSleep(ctx, b)
	s.rousings.ended(v.ID, nil)
	s.deps.Log.Info("vm woken", "vm", v.ID, "took", time.Since(began), "steps", took)
	b.vm.Took = took
	return b.vm, nil
}

// wakeFailed stores that the VM sleeps on.
func (s *Service) wakeFailed(ctx context.Context, b *boot, stepName string, cause error) (VM, error) {
	s.deps.Log.Warn("vm cannot be woken", "vm", b.vm.ID, "step", stepName, "err", cause)
	if b.stuck {
		return s.startFailed(ctx, b, stepName, cause)
	}
	if err := s.sleepOn(ctx, b.vm.ID, b.sleep, fmt.Sprintf("asleep; cannot wake the VM (%s): %s", stepName, publicMessage(cause))); err != nil {
		s.deps.Log.Error("cannot store that a vm sleeps on", "vm", b.vm.ID, "err", err)
	}
	return VM{}, answer(cause, errs.New(errs.Internal, "wake_failed", "cannot wake VM %s: the %s step failed", b.vm.ID, stepName))
}

// sleepOn stores that a VM sleeps after all, and goes on making its memory durable.
func (s *Service) sleepOn(ctx context.Context, id string, sleep *Sleep, reason string) error {
	_, err := s.update(ctx, id, func(v *VM) {
		v.State, v.StateReason, v.Sleep, v.Machine = Snapshotted, reason, sleep, nil
	})
	if !sleep.Durable {
		s.persist(id)
	}
	return err
}

func (s *Service) recall(ctx context.Context, b *boot) error {
	return s.deps.Memories.Recall(ctx, b.vm.ID, b.sleep.Durable, s.uid(b.vm))
}

// unrecall gives RAM back that the memory on disk does not need.
func (s *Service) unrecall(_ context.Context, b *boot) {
	if b.stuck || !b.sleep.Durable {
		return
	}
	if err := s.deps.Memories.Release(b.vm.ID); err != nil {
		s.deps.Log.Error("cannot give the RAM of a sleeping vm back", "vm", b.vm.ID, "err", err)
	}
}

func (s *Service) wakeMachine(ctx context.Context, b *boot) error {
	spec, err := s.spec(ctx, b)
	if err != nil {
		return err
	}
	b.machine, err = s.deps.Drivers[b.vm.Driver].Wake(ctx, spec, s.deps.Memories.Dir(b.vm.ID))
	return err
}

func (s *Service) rejoinGuest(_ context.Context, b *boot) error {
	return s.connectBy(b, s.deps.Guests.Rejoin)
}

// reasonWaking is why it is not known of a guest just woken whether its agent
// answers.
const reasonWaking = "Waking"

func (s *Service) recordAwake(ctx context.Context, b *boot) error {
	h := b.machine.Handle()
	now := time.Now().UTC().Truncate(time.Microsecond)
	v, err := s.update(ctx, b.vm.ID, func(v *VM) {
		v.State, v.StateReason, v.Intent = Running, "", WantRunning
		v.Machine, v.Sleep, v.StartedAt = &h, nil, &now
		v.Conditions.Agent = v.Conditions.Agent.moved(Unknown, reasonWaking, "", now)
	})
	if err != nil {
		return err
	}
	b.vm = v
	return nil
}

// reconcileAsleep brings a VM that slept when the daemon ended, or was about to
// wake, to a state that is true: it sleeps. A machine of it has not let its
// guest run, and is ended.
func (s *Service) reconcileAsleep(ctx context.Context, v VM, h vmm.Handle) error {
	if err := s.endMachine(ctx, h); err != nil {
		return err
	}
	if v.Intent == WantDeleted {
		_, err := s.told(ctx, v, "delete", s.remove)
		return err
	}
	v, err := s.moveIn(ctx, v)
	if err != nil {
		return err
	}
	if !s.deps.Memories.Has(v.ID, v.Sleep.Durable) {
		s.unhang(ctx, v)
		_, err := s.update(ctx, v.ID, func(v *VM) {
			v.State, v.StateReason, v.Intent = Stopped, "the host was restarted before the memory of the sleeping VM was on disk", WantStopped
			v.Machine, v.Sleep, v.Conditions = nil, nil, Conditions{}
		})
		return err
	}
	s.detachLink(ctx, v)
	if err := s.forward(v); err != nil {
		s.deps.Log.Error("cannot listen on the SSH port of a sleeping vm", "vm", v.ID, "err", err)
	}
	if v.Sleep.Durable {
		if err := s.deps.Memories.Release(v.ID); err != nil {
			return err
		}
	}
	if v.State == Snapshotted {
		if !v.Sleep.Durable {
			s.persist(v.ID)
		}
		return nil
	}
	return s.sleepOn(ctx, v.ID, v.Sleep, "asleep; hatchd ended while the VM was being woken")
}
