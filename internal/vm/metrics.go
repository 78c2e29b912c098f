package vm

import (
	"context"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Traffic counts what went over a guest's network device, as the guest sees
// it: what it has received is Rx.
type Traffic struct {
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
}

// GuestUsage is what a guest says of itself. Sizes are in bytes.
type GuestUsage struct {
	Uptime              time.Duration // since the guest's boot
	CPUBusy             time.Duration // of all its CPUs together, since its boot
	Load                [3]float64    // over 1, 5 and 15 minutes
	MemTotal, MemUsed   int64
	DiskTotal, DiskUsed int64 // of its root file system
}

// Metrics are what a VM uses. The counters count from the start of its VMM
// process and never go back while that lives: not when the guest reboots, and
// not when hatchd is restarted. Without a VMM all but HostDisk is zero.
type Metrics struct {
	VM            VM
	CollectedAt   time.Time
	CountersSince *time.Time // the start of the VMM; nil when there is none
	Uptime        time.Duration

	CPUTime    time.Duration // of the VMM: the guest's CPUs, and the devices' emulation
	CPUPercent float64       // 100 is one CPU of the host
	Resident   int64         // bytes of the host's memory
	Block      vmm.BlockCounters
	Traffic    Traffic
	HostDisk   int64       // bytes that the VM's files take on the host
	Guest      *GuestUsage // nil when no agent tells

	// GuestMemory is what the guest's kernel has told the VMM; zero: nothing.
	// Guest, where there is one, is newer.
	GuestMemory vmm.GuestMemory
}

const (
	// metricsPatience bounds all that is asked for metrics.
	metricsPatience = 2 * time.Second
	// usagePatience bounds the wait for the agent's part of it.
	usagePatience = 1500 * time.Millisecond
	// lookAgain is the pause before looking again at a VM whose machine comes
	// or goes.
	lookAgain = 50 * time.Millisecond
)

// Metrics tells what a VM uses, whatever its state. What the guest's agent does
// not tell in time is left out.
//
// Errors: errs.NotFound; errs.Unavailable when the VMM does not answer in time.
func (s *Service) Metrics(ctx context.Context, owner, id string) (Metrics, error) {
	if _, err := s.deps.Store.VM(ctx, owner, id); err != nil {
		return Metrics{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, metricsPatience)
	defer cancel()
	select {
	case <-s.adopted:
	case <-ctx.Done():
		return Metrics{}, errStarting
	}
	for {
		changed := s.changes.next(id)
		v, err := s.deps.Store.VM(ctx, owner, id)
		if err != nil {
			return Metrics{}, err
		}
		in := s.instanceOf(id)
		if in != nil || v.Machine == nil {
			m, err := s.measure(ctx, v, in)
			if !errs.Is(err, errs.NotFound) {
				return m, err
			}
		}
		// The machine has ended and its row does not say so yet, or it has just
		// begun and is not held yet, or it could not be taken over.
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return Metrics{}, errs.New(errs.Unavailable, "machine_out_of_reach", "cannot tell what VM %s uses: its VMM is out of reach", id).
				WithHint("try again; hatchd's log says more")
		}
	}
}

// measure asks everybody who knows something of a VM; in is nil when no
// machine of it lives. Errors: errs.NotFound when the machine has ended.
func (s *Service) measure(ctx context.Context, v VM, in *instance) (m Metrics, err error) {
	m = Metrics{VM: v, CollectedAt: time.Now().UTC()}
	if m.HostDisk, err = s.deps.Files.Allocated(v.ID); err != nil || in == nil {
		return m, err
	}
	told := make(chan *GuestUsage, 1)
	go func() { told <- s.askGuest(ctx, v, in) }()
	err = s.askHost(ctx, v, in, &m)
	if m.Guest = <-told; m.Guest != nil {
		m.Uptime = m.Guest.Uptime
	}
	return m, err
}

// askHost fills in what the host counts.
func (s *Service) askHost(ctx context.Context, v VM, in *instance, m *Metrics) error {
	st, percent, err := in.cpu.measure(ctx, in.machine)
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

// askGuest returns what the guest tells, or nil: it may have no agent, be busy,
// paused or hostile.
func (s *Service) askGuest(ctx context.Context, v VM, in *instance) *GuestUsage {
	if v.State == Paused {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, usagePatience)
	defer cancel()
	u, err := in.guest.Usage(ctx)
	if err == nil && u.MemTotal <= int64(v.MemMiB)<<20 {
		return &u
	}
	s.deps.Log.Debug("a guest does not tell what it uses", "vm", v.ID, "err", err, "mem_total", u.MemTotal)
	return nil
}

// The span of time over which use is told. A reading before that is younger or
// older says little of the present; without any, a short span is measured.
const (
	leastSpan = time.Second
	mostSpan  = time.Minute
	shortSpan = 250 * time.Millisecond
)

// cpuMeter tells a machine's use of CPU between readings of what it has used.
// The zero value is ready.
type cpuMeter struct {
	mu         sync.Mutex
	base, last cpuReading // last is the newest one; base is leastSpan older at least
}

// cpuReading is what was used up to a time.
type cpuReading struct {
	at   time.Time
	used time.Duration
}

// measure reads the machine's stats, and tells its use of CPU in percent.
func (c *cpuMeter) measure(ctx context.Context, m vmm.Machine) (vmm.Stats, float64, error) {
	st, err := m.Stats(ctx)
	if err != nil {
		return st, 0, err
	}
	now := cpuReading{time.Now(), st.CPUTime}
	if base, ok := c.take(now); ok {
		return st, now.since(base), nil
	}
	select {
	case <-time.After(shortSpan):
	case <-ctx.Done():
		return st, 0, errs.New(errs.Unavailable, "interrupted", "the measurement was interrupted").WithCause(ctx.Err())
	}
	if st, err = m.Stats(ctx); err != nil {
		return st, 0, err
	}
	return st, cpuReading{time.Now(), st.CPUTime}.since(now), nil
}

// take remembers a reading, and returns an earlier one to compare it with, if
// there is one of the right age.
func (c *cpuMeter) take(now cpuReading) (base cpuReading, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.at.Sub(c.last.at) >= leastSpan {
		c.base, c.last = c.last, now
	}
	age := now.at.Sub(c.base.at)
	return c.base, age >= leastSpan && age <= mostSpan
}

// since returns the use of CPU between two readings, in percent of one CPU.
func (r cpuReading) since(base cpuReading) float64 {
	span := r.at.Sub(base.at)
	if span <= 0 || r.used <= base.used {
		return 0
	}
	return 100 * (r.used - base.used).Seconds() / span.Seconds()
}
