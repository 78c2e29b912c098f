package hostpower

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// What the database does not answer is tried again: a read of all VMs for half of
// Timeout, an operation so many times.
const (
	retryInterval = time.Second
	attempts      = 3
)

// Down puts VMs to sleep, or stops them, and returns when no VM has a process and
// the memory of sleeping ones is on disk, or their rows say why not. After Timeout
// it kills what is left.
// Precondition: no VM can be created, started or woken any more.
func (s *Service) Down(ctx context.Context) error {
	began := time.Now()
	inOrder, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	vms, err := s.readVMs(inOrder)
	if err != nil { // the database has ended first; the host must not wait for VMs all the same
		s.Log.Error("cannot read the VMs; their guests are asked to shut down without the database", logkey.Error, err)
		return errors.Join(err, s.downUnrecorded(inOrder), s.killHeld(ctx))
	}
	d := &descent{Service: s, failed: map[string]error{}}
	d.run(inOrder, vms)
	err = s.killLeft(ctx, d.failed)
	s.Log.Info("VMs are down for the shutdown of the host", logkey.Took, time.Since(began))
	return err
}

// readVMs reads all VMs as soon as the database answers. It leaves half of Timeout
// for guests to shut down without it.
func (s *Service) readVMs(ctx context.Context) ([]vm.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout/2)
	defer cancel()
	for {
		vms, err := s.Store.AllVMs(ctx)
		if err == nil || !pause(ctx) {
			return vms, err
		}
	}
}

// pause waits for the next attempt, and reports whether there is time for one.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(retryInterval):
		return true
	case <-ctx.Done():
		return false
	}
}

// downUnrecorded shuts down the guests of all machines that this hatchd holds.
func (s *Service) downUnrecorded(ctx context.Context) error {
	ids := s.Live.IDs()
	failures := make([]error, len(ids))
	var each sync.WaitGroup
	for i, id := range ids {
		each.Go(func() { failures[i] = s.Power.ShutDownHeld(ctx, id) })
	}
	each.Wait()
	return errors.Join(failures...)
}

// descent is one shutdown of the host, as far as VMs go down in order.
type descent struct {
	*Service
	stops sync.WaitGroup

	mu     sync.Mutex
	failed map[string]error // why VMs could not be stopped while there was time, by id
}

// run takes all VMs down until ctx is done. Those that must stop are asked at once,
// each as soon as that is known. The others are put to sleep one after the other,
// each when the memory of those before it is on disk: the room for its memory is
// that of this moment, and its VMM must not end for a copy that then finds none.
func (d *descent) run(ctx context.Context, vms []vm.VM) {
	asleepBy, cancel := context.WithTimeout(ctx, d.sleepTime())
	defer cancel()
	for _, v := range d.stopAtOnce(ctx, vms) {
		d.Power.FinishPersisting(asleepBy) // also of VMs asleep before
		d.sleep(ctx, asleepBy, v)
	}
	d.Power.FinishPersisting(ctx)
	d.stops.Wait()
	d.Power.FinishPersisting(ctx) // of a VM that came to sleep before its turn to stop
}

// sleepTime is how long VMs are put to sleep. The rest of Timeout is for those that
// must then stop instead.
func (s *Service) sleepTime() time.Duration {
	return s.Timeout - min(s.Power.StopTimeout, s.Timeout/2)
}

// stopAtOnce begins to stop the VMs that are not to sleep or cannot, and returns the
// others that may have a machine. Those with an operation in progress, which must
// end first, are last.
func (d *descent) stopAtOnce(ctx context.Context, vms []vm.VM) (toSleep []vm.VM) {
	var inUse []vm.VM
	for _, v := range vms {
		switch err := d.Power.CheckCanSleep(v); {
		case !mayHaveMachine(v):
		case d.Policy == Stop:
			d.stop(ctx, v, "")
		case err != nil:
			d.stop(ctx, v, cannotSleep+errs.Public(err))
		case d.Runner.Locked(v.ID):
			inUse = append(inUse, v)
		default:
			toSleep = append(toSleep, v)
		}
	}
	return append(toSleep, inUse...)
}

func mayHaveMachine(v vm.VM) bool { return v.State.Live() || v.Machine != nil }

const cannotSleep = "; the VM could not be put to sleep: "

// sleep puts one VM to sleep until asleepBy is done, or begins to stop it.
func (d *descent) sleep(ctx, asleepBy context.Context, v vm.VM) {
	err := d.operate(asleepBy, v.ID, "sleep", d.Power.SleepWithHost)
	switch {
	case err == nil:
	case asleepBy.Err() != nil:
		d.stop(ctx, v, cannotSleep+"other VMs took the time that there was for it")
	default:
		d.stop(ctx, v, cannotSleep+errs.Public(err))
	}
}

// stop begins to stop one VM, unless it has come to sleep after all.
func (d *descent) stop(ctx context.Context, v vm.VM, why string) {
	d.stops.Go(func() {
		err := d.operate(ctx, v.ID, "stop", func(ctx context.Context, v vm.VM) (vm.VM, error) {
			return d.Power.StopWithHost(ctx, v, stoppedReason+why)
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		d.Log.Error("cannot stop a vm for the shutdown of the host", logkey.VM, v.ID, logkey.Error, err)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.failed[v.ID] = err
	})
}

// operate runs an operation on a VM that runs or is paused once the operation before
// it has ended; there is none on other VMs.
func (d *descent) operate(ctx context.Context, id, name string, do operation.Func) error {
	for attempt := 1; ; attempt++ {
		_, err := d.Runner.Run(ctx, operation.Op{
			Scope: access.Everyone, VMID: id, Name: name, Do: do,
			Skip: func(v vm.VM) (bool, error) { return v.State != vm.Running && v.State != vm.Paused, nil },
		})
		if err == nil || attempt == attempts || !mayPass(err) || !pause(ctx) {
			return err
		}
	}
}

// mayPass reports whether an error is like those of a database that does not answer
// for a moment. That of a VMM that has failed to save its guest is not.
func mayPass(err error) bool {
	_, known := errs.As(err)
	return errs.HasCode(err, errs.DatabaseUnavailable) || !known && transition.StepOf(err) != "save"
}
