package vmmtest

import (
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

func testStats(t *testing.T, h Harness) {
	before := time.Now()
	_, m := boot(t, h)
	first := statsOf(t, m)
	if off := first.StartedAt.Sub(before); off < -2*time.Second || off > timeout {
		t.Errorf("the machine was started after %v, and StartedAt is %v", before, first.StartedAt)
	}
	if first.CPUTime <= 0 || first.Resident <= 0 {
		t.Errorf("a guest that has booted used no CPU or memory: %+v", first)
	}
	m.console.Say("tick")
	m.console.Expect("tick 3")
	second := statsOf(t, m)
	if second.CPUTime <= first.CPUTime {
		t.Errorf("a ticking guest used no CPU: %v, then %v", first.CPUTime, second.CPUTime)
	}
	requireMonotonic(t, first, second)

	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	paused := statsOf(t, m)
	requireMonotonic(t, second, paused)
	m.close(t)
	next := adopt(t, h, m)
	adopted := statsOf(t, next)
	requireMonotonic(t, paused, adopted)

	if err := next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := DialConsole(t, next)
	if h.Driver(t).Info().Capabilities.Reboot {
		c.Say("reboot")
		c.Expect(greeting)
	}
	requireMonotonic(t, adopted, statsOf(t, next))
}

func statsOf(t *testing.T, m vmm.Machine) vmm.Stats {
	t.Helper()
	st, err := m.Stats(t.Context())
	if err != nil {
		t.Fatalf("cannot get stats: %v", err)
	}
	return st
}

// requireMonotonic checks that no counter has decreased and that the start time is the
// same.
func requireMonotonic(t *testing.T, first, second vmm.Stats) {
	t.Helper()
	a, b := first.Block, second.Block
	if second.CPUTime < first.CPUTime || b.ReadBytes < a.ReadBytes || b.WriteBytes < a.WriteBytes || b.ReadOps < a.ReadOps || b.WriteOps < a.WriteOps {
		t.Errorf("a counter has decreased from %+v to %+v", first, second)
	}
	if !first.StartedAt.Equal(second.StartedAt) {
		t.Errorf("StartedAt has changed from %v to %v", first.StartedAt, second.StartedAt)
	}
}
