package power

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

// checked stores how a machine is. If mayRetry, it also resumes a guest that should
// run, unless the host's disk is still full.
func (s *Service) checked(ctx context.Context, id string, m *live.Machine, h vm.Health, mayRetry bool) error {
	v, err := s.Store.VM(ctx, access.Everyone, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if v.IsNews(h) {
		if v, err = s.Runner.Update(ctx, id, vm.ToChecked(h, vm.Now())); err != nil {
			s.Log.Error("cannot store how a machine is", logkey.VM, id, logkey.Error, err)
			return ignoreNotFound(err)
		}
		s.Log.Warn("the health of a machine has changed", logkey.VM, id, logkey.Reason, v.Conditions.VMM.Reason)
	}
	if !mayRetry || !v.Contradicts(h) || (h.Halt == vmm.HaltNoSpace && !s.HasRoom()) {
		return nil
	}
	if err := s.align(ctx, id, m); err != nil {
		s.Log.Warn("cannot let a guest run on", logkey.VM, id, logkey.Error, err)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// alignTimeout bounds align, which holds the VM's lock.
const alignTimeout = 5 * time.Second

// align makes row and machine agree on whether the CPUs run. It does nothing while an
// operation is in progress, which may have halted them.
func (s *Service) align(ctx context.Context, id string, m *live.Machine) error {
	if s.Runner.Locked(id) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, alignTimeout)
	defer cancel()
	unlock, err := s.Runner.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := s.Store.VM(ctx, access.Everyone, id)
	if err != nil || s.Live.Current(id) != m {
		return ignoreNotFound(err)
	}
	now, err := m.Health(ctx)
	if err != nil || !v.Contradicts(vm.Health{Halt: now.Halt}) {
		return err
	}
	if v.State == vm.Paused {
		_, err := s.Runner.Update(ctx, id, vm.ToResumed)
		return err
	}
	if err := m.Resume(ctx); err != nil {
		return err
	}
	s.Log.Info("a guest that stood still was resumed", logkey.VM, id, logkey.Reason, now.Halt)
	s.SetClock(id, m)
	return nil
}
