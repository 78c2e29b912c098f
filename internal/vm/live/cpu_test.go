package live

import (
	"testing"
	"time"
)

// TestCPUIsMeasuredOverAFairSpan polls as several clients do: each gets the use
// over a second at least.
func TestCPUIsMeasuredOverAFairSpan(t *testing.T) {
	var c CPUMeter
	t0 := time.Unix(1000, 0)
	for _, step := range []struct {
		at   time.Duration
		base time.Duration // of the reading it is compared with; -1: none
	}{
		{0, -1},
		{500 * time.Millisecond, -1},
		{1000 * time.Millisecond, 0},
		{1500 * time.Millisecond, 0},
		{1999 * time.Millisecond, 0},
		{2500 * time.Millisecond, 1000 * time.Millisecond},
		{2600 * time.Millisecond, 1000 * time.Millisecond},
		{10 * time.Second, 2500 * time.Millisecond},
		{2 * time.Minute, -1},
		{2*time.Minute + 100*time.Millisecond, -1},
		{2*time.Minute + time.Second, 2 * time.Minute},
	} {
		base, ok := c.compare(cpuReading{at: t0.Add(step.at)})
		if ok != (step.base >= 0) || ok && !base.at.Equal(t0.Add(step.base)) {
			t.Errorf("at %v: compared with %v, %v; want %v", step.at, base.at.Sub(t0), ok, step.base)
		}
	}
}

func TestUseOfCPUIsInPercentOfOne(t *testing.T) {
	base := cpuReading{time.Unix(0, 0), time.Second}
	for _, c := range []struct {
		span, used time.Duration
		want       float64
	}{
		{time.Second, time.Second, 100},
		{2 * time.Second, time.Second, 50},
		{time.Second, 3 * time.Second, 300},
		{time.Second, 0, 0},
		{0, time.Second, 0},
		{-time.Second, time.Second, 0},
	} {
		now := cpuReading{base.at.Add(c.span), base.used + c.used}
		if got := now.since(base); got != c.want {
			t.Errorf("%v within %v: %v %%, want %v", c.used, c.span, got, c.want)
		}
	}
}
