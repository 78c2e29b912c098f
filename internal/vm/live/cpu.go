package live

import (
	"context"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// The span of time over which CPU use is averaged. An earlier reading that is
// younger or older says little about the present; without one, a short span is
// measured.
const (
	minSpan   = time.Second
	maxSpan   = time.Minute
	shortSpan = 250 * time.Millisecond
)

// CPUMeter computes a machine's CPU use between readings of its CPU time. The
// zero value is ready.
type CPUMeter struct {
	mu         sync.Mutex
	base, last cpuReading // last is the newest; base is at least minSpan older
}

// cpuReading is the CPU time used up to a moment.
type cpuReading struct {
	at   time.Time
	used time.Duration
}

// Measure reads the machine's stats, and tells its use of CPU in percent.
func (c *CPUMeter) Measure(ctx context.Context, m vmm.Machine) (vmm.Stats, float64, error) {
	st, err := m.Stats(ctx)
	if err != nil {
		return st, 0, err
	}
	now := cpuReading{time.Now(), st.CPUTime}
	if base, ok := c.compare(now); ok {
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
func (c *CPUMeter) compare(now cpuReading) (base cpuReading, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.at.Sub(c.last.at) >= minSpan {
		c.base, c.last = c.last, now
	}
	age := now.at.Sub(c.base.at)
	return c.base, age >= minSpan && age <= maxSpan
}

// since returns the use of CPU between two readings, in percent of one CPU.
func (r cpuReading) since(base cpuReading) float64 {
	span := r.at.Sub(base.at)
	if span <= 0 || r.used <= base.used {
		return 0
	}
	return 100 * (r.used - base.used).Seconds() / span.Seconds()
}
