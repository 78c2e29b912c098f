package lifecycle

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
)

const (
	// metricsTimeout bounds a request for metrics.
	metricsTimeout = 2 * time.Second
	// usageTimeout bounds the agent's part of it.
	usageTimeout = 1500 * time.Millisecond
	// recheckInterval is the wait before another look at a VM whose machine is
	// being started or ended.
	recheckInterval = 50 * time.Millisecond
)

// Metrics returns what a VM uses, in any state. What the guest's agent does not
// report in time is left out.
//
// Errors: errs.NotFound; errs.Unavailable when the VMM does not answer in time.
func (s *Service) Metrics(ctx context.Context, scope access.Scope, id string) (vm.Metrics, error) {
	if _, err := s.deps.Store.VM(ctx, scope, id); err != nil {
		return vm.Metrics{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	if err := s.runner.AwaitRecovery(ctx); err != nil {
		return vm.Metrics{}, err
	}
	for {
		changed := s.runner.Changed(id)
		v, err := s.deps.Store.VM(ctx, scope, id)
		if err != nil {
			return vm.Metrics{}, err
		}
		machine, err := s.live.Get(ctx, v, live.Held)
		if err != nil {
			return vm.Metrics{}, err
		}
		if machine != nil || v.Machine == nil {
			m, err := s.measure(ctx, v, machine)
			if !errs.Is(err, errs.NotFound) {
				return m, err
			}
		}
		// The machine has ended and its row does not say so yet, or it has just
		// started and is not held yet, or it could not be adopted.
		select {
		case <-changed:
		case <-time.After(recheckInterval):
		case <-ctx.Done():
			return vm.Metrics{}, errs.New(errs.Unavailable, "vmm_unresponsive", "cannot measure VM %s: its VMM does not respond", id).
				WithHint("try again; hatchd's log says more")
		}
	}
}

// measure asks the host and the guest at the same time; machine is nil when none
// lives. Errors: errs.NotFound when the machine has ended.
func (s *Service) measure(ctx context.Context, v vm.VM, machine *live.Machine) (m vm.Metrics, err error) {
	m = vm.Metrics{VM: v, CollectedAt: time.Now().UTC()}
	if m.HostDisk, err = s.deps.Files.Allocated(v.ID); err != nil || machine == nil {
		return m, err
	}
	reported := make(chan *vm.GuestUsage, 1)
	go func() { reported <- s.guestUsage(ctx, v, machine) }()
	err = s.measureHost(ctx, v, machine, &m)
	if m.Guest = <-reported; m.Guest != nil {
		m.Uptime = m.Guest.Uptime
	}
	return m, err
}

// measureHost fills in what the host counts.
func (s *Service) measureHost(ctx context.Context, v vm.VM, machine *live.Machine, m *vm.Metrics) error {
	st, percent, err := machine.CPU.Measure(ctx, machine)
	if err != nil {
		return err
	}
	m.CollectedAt = time.Now().UTC()
	m.CountersSince, m.Uptime = &st.StartedAt, max(0, m.CollectedAt.Sub(st.StartedAt))
	m.CPUTime, m.CPUPercent, m.Resident, m.Block = st.CPUTime, percent, st.Resident, st.Block
	if st.GuestMemory.Total <= int64(v.MemMiB)<<20 {
		m.GuestMemory = st.GuestMemory
	}
	if v.EnableNetwork {
		m.Traffic, err = s.deps.Network.Traffic(ctx, v.Link())
	}
	return err
}

// guestUsage returns what the guest reports, or nil: it may have no agent, be
// busy, paused or hostile.
func (s *Service) guestUsage(ctx context.Context, v vm.VM, machine *live.Machine) *vm.GuestUsage {
	if v.State == vm.Paused {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	u, err := machine.Guest.Usage(ctx)
	if err == nil && u.MemTotal <= int64(v.MemMiB)<<20 {
		return &u
	}
	s.deps.Log.Debug("a guest does not report its usage", logkey.VM, v.ID, logkey.Error, err, "mem_total", u.MemTotal)
	return nil
}
