package power

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

// exited cleans up after a machine that no operation ended, and stores why it
// ended. A guest that rebooted is started again.
func (s *Service) exited(ctx context.Context, id string, m *live.Machine) {
	unlock, err := s.Runner.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	if !s.Live.Remove(id, m) {
		return // an operation ended it and has cleaned up
	}
	exit := m.Exit()
	s.Live.Leave(id, m)
	v, err := s.readUntilClosing(ctx, id)
	if err != nil {
		s.Log.Error("cannot read the VM of a machine that ended", logkey.VM, id, logkey.Error, err)
		return // the next start of hatchd finds it out
	}
	if v.Asleep() { // a late end: the VM's memory is saved already
		s.Engine.DetachLink(ctx, v)
		return
	}
	s.Engine.Teardown(ctx, v)
	s.Log.Info("vm ended", logkey.VM, id, "cause", exit.Cause, "detail", exit.Detail)
	if exit.Cause == vmm.ExitReset && v.Intent == vm.IntentRunning {
		reboot := func(ctx context.Context, v vm.VM) (vm.VM, error) { // its CPUs are its own already: it need not wait
			v, _, err := s.boot(ctx, v)
			return v, err
		}
		if v, err = s.Runner.Record(ctx, v, "reboot", reboot); err != nil {
			s.Log.Warn("cannot start a guest that rebooted", logkey.VM, id, logkey.Error, err)
		} else {
			s.rebooted(ctx, v)
		}
		return // boot has stored what became of the VM, and whether a process is left
	}
	if _, err := s.Runner.Update(ctx, id, vm.ToEnded(afterExit(exit))); err != nil {
		s.Log.Error("cannot store that a vm ended", logkey.VM, id, logkey.Error, err)
	}
}

// afterExit returns the state of a VM after its machine ended without a request.
func afterExit(exit vmm.Exit) (vm.State, string) {
	switch exit.Cause {
	case vmm.ExitShutdown:
		return vm.Stopped, "the guest powered itself off"
	case vmm.ExitPanic:
		return vm.Failed, withDetail("the guest's kernel panicked", exit.Detail)
	case vmm.ExitReset:
		return vm.Failed, "the guest rebooted, but could not be started again"
	case vmm.ExitCrashed:
		return vm.Failed, withDetail("the VMM ended unexpectedly", exit.Detail)
	case vmm.ExitKilled:
		return vm.Stopped, "the VMM was ended by hatchd"
	default:
		return vm.Failed, withDetail("the VMM ended for an unknown reason", exit.Detail)
	}
}

func withDetail(what, detail string) string {
	if detail == "" {
		return what
	}
	return what + ": " + detail
}

// readRetry is the interval between attempts to read a VM whose machine has ended.
const readRetry = time.Second

// readUntilClosing reads a VM, and retries while the database does not answer:
// the VM's port, link and memory must be taken down.
func (s *Service) readUntilClosing(ctx context.Context, id string) (vm.VM, error) {
	for {
		v, err := s.Store.VM(ctx, access.Everyone, id)
		if err == nil || errs.Is(err, errs.NotFound) {
			return v, err
		}
		select {
		case <-s.Runner.Closing():
			return vm.VM{}, err
		case <-time.After(readRetry):
		}
	}
}

// reported stores an agent's report.
func (s *Service) reported(ctx context.Context, id string, r *vm.GuestReport, rebooted bool) error {
	v, err := s.Runner.Update(ctx, id, vm.ToReported(r, vm.Now()))
	if err != nil {
		s.Log.Error("cannot store a guest's report", logkey.VM, id, logkey.Error, err)
		return err
	}
	if rebooted {
		s.rebooted(ctx, v)
	}
	return nil
}

// rebooted tells that a guest has rebooted, in the same VMM or in a new one.
func (s *Service) rebooted(ctx context.Context, v vm.VM) {
	s.Runner.Append(ctx, v, event.Of(event.VMRebooted, "the guest has rebooted", nil))
}
