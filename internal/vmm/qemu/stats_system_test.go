//go:build linux && amd64 && system

package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

func statsOf(t *testing.T, m vmm.Machine) vmm.Stats {
	t.Helper()
	began := time.Now()
	st, err := m.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v after %v", st, time.Since(began).Round(time.Microsecond))
	return st
}

func TestStatsCountTheGuestsWork(t *testing.T) {
	l := newLab(t)
	m, c := l.run(t, l.spec(t))
	c.Expect("guest ready")
	before := statsOf(t, m)

	c.Say("fill own 8")
	c.Expect("fill: ok")
	filled := statsOf(t, m)
	if got := filled.Block.WriteBytes - before.Block.WriteBytes; got != 8<<20 {
		t.Errorf("the guest wrote %d bytes; counted were %d", 8<<20, got)
	}
	if filled.Block.WriteOps <= before.Block.WriteOps {
		t.Error("the guest wrote, and no write operation was counted")
	}
	if filled.Block.ReadBytes != before.Block.ReadBytes {
		t.Errorf("the guest read nothing; counted were %d bytes", filled.Block.ReadBytes-before.Block.ReadBytes)
	}

	c.Say("burn 1000")
	c.Expect("burn: ok")
	burnt := statsOf(t, m)
	if got := burnt.CPUTime - filled.CPUTime; got < 300*time.Millisecond {
		t.Errorf("the guest computed for a second; counted was %v", got)
	}
	requireKernelsCounters(t, m, burnt)
}

// requireKernelsCounters compares the stats with the process's files in /proc.
func requireKernelsCounters(t *testing.T, m vmm.Machine, st vmm.Stats) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	var user, system int64
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if _, err := fmt.Sscan(fields[11], &user); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(fields[12], &system); err != nil {
		t.Fatal(err)
	}
	kernel := time.Duration(user+system) * 10 * time.Millisecond
	if off := kernel - st.CPUTime; off < -30*time.Millisecond || off > 500*time.Millisecond {
		t.Errorf("the kernel counts %v of CPU time, the driver %v", kernel, st.CPUTime)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	if off := kib<<10 - st.Resident; off < -8<<20 || off > 8<<20 {
		t.Errorf("the kernel counts %d KiB of memory, the driver %d", kib, st.Resident>>10)
	}
}
