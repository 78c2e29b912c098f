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
	if off := first.StartedAt.Sub(before); off < -2*time.Second || off > patience {
		t.Errorf("started at %v, and said to be started at %v", before, first.StartedAt)
	}
	if first.CPUTime <= 0 || first.Resident <= 0 {
		t.Errorf("a guest has booted on nothing: %+v", first)
	}
	m.console.Say("tick")
	m.console.Expect("tick 3")
	second := statsOf(t, m)
	if second.CPUTime <= first.CPUTime {
		t.Errorf("a guest that works uses no CPU: %v, then %v", first.CPUTime, second.CPUTime)
	}
	requireOnward(t, first, second)

	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	paused := statsOf(t, m)
	requireOnward(t, second, paused)
	m.letGo(t)
	next := adopt(t, h, m)
	adopted := statsOf(t, next)
	requireOnward(t, paused, adopted)

	if err := next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := DialConsole(t, next)
	if h.Driver(t).Info().Capabilities.Reboot {
		c.Say("reboot")
		c.Expect(greeting)
	}
	requireOnward(t, adopted, statsOf(t, next))
}

func statsOf(t *testing.T, m vmm.Machine) vmm.Stats {
	t.Helper()
	st, err := m.Stats(t.Context())
	if err != nil {
		t.Fatalf("cannot get stats: %v", err)
	}
	return st
}

// requireOnward checks that no counter went back and that they count from the
// same moment.
func requireOnward(t *testing.T, first, second vmm.Stats) {
	t.Helper()
	a, b := first.Block, second.Block
	if second.CPUTime < first.CPUTime || b.ReadBytes < a.ReadBytes || b.WriteBytes < a.WriteBytes || b.ReadOps < a.ReadOps || b.WriteOps < a.WriteOps {
		t.Errorf("a counter went back from %+v to %+v", first, second)
	}
	if !first.StartedAt.Equal(second.StartedAt) {
		t.Errorf("the start has moved from %v to %v", first.StartedAt, second.StartedAt)
	}
}
