package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// metrics are of a busy guest, or of a VM that does not run.
func (f *fakeServer) metrics(v *api.VM) api.Metrics {
	m := api.Metrics{VMID: v.ID, State: v.State, VCPUCount: v.VCPUCount, MemMiB: v.MemMiB, CollectedAt: api.Time{Time: testNow}, HostDiskBytes: 5 << 20}
	if f.onMetrics != nil {
		f.onMetrics()
	}
	if !slices.Contains(statesWithMachine, v.State) {
		return m
	}
	since, used, total := api.Time{Time: testNow.Add(-time.Hour)}, int64(123<<20), int64(1000<<20)
	m.CountersSince, m.UptimeSeconds = &since, 3599
	m.VCPU.UtilizationPercent = 101.26
	if f.standsStill {
		m.VCPU.UtilizationPercent = 0
	}
	m.Memory = api.MemMetrics{GuestUsedBytes: &used, GuestTotalBytes: &total, HostResidentBytes: 1 << 30}
	m.Disk = &api.DiskMetrics{UsedBytes: 300 << 20, TotalBytes: 4 << 30}
	m.Net = api.NetMetrics{RxBytes: 1536, TxBytes: 999}
	m.Block = api.BlockMetrics{ReadBytes: 7 << 40}
	m.Load = &api.LoadMetrics{Avg1: 0.5, Avg5: 1, Avg15: 2.25}
	return m
}

func TestTopOnce(t *testing.T) {
	f := newFake(t)
	f.vms[2].Name = "evil\x1b[2Jname"
	s := newSession(t, f)
	for name, args := range map[string][]string{
		"top.txt":      {"top"},
		"top-all.txt":  {"stats", "-a"},
		"top-wide.txt": {"top", "web", "-o", "wide"},
	} {
		t.Run(name, func(t *testing.T) {
			if code := s.hatch(args...); code != 0 {
				t.Fatalf("%v: exit code %d: %s", args, code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
	s.tty = true
	if s.hatch("top", "--no-stream"); strings.Contains(s.stdout.String(), liveBegin) {
		t.Errorf("--no-stream is live: %q", &s.stdout)
	}
}

func TestTopAsJSON(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.tty = true // JSON is no live table there either
	if code := s.hatch("top", "-a", "-o", "json"); code != 0 {
		t.Fatal(&s.stderr)
	}
	var list []api.Metrics
	if err := json.Unmarshal(s.stdout.Bytes(), &list); err != nil || len(list) != 3 || list[0].VMID != "vm_web000000001" {
		t.Errorf("%v: %s", err, &s.stdout)
	}
	if code := s.hatch("top", "db", "-o", "jsonl"); code != 0 || strings.Count(s.stdout.String(), "\n") != 1 {
		t.Errorf("exit code %d: %s", code, &s.stdout)
	}
}

func TestTopFailures(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("top", "nothing"); code != exitNotFound || !strings.Contains(s.stderr.String(), "there is no VM") {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if code := s.hatch("top", "--interval", "1ms"); code != exitUsage || !strings.Contains(s.stderr.String(), "100ms at least") {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	f.answer["GET /vms/vm_web000000001/metrics"] = api.Problem{Status: 503, Error: "its VMM is out of reach", Code: "vmm_unresponsive"}
	code := s.hatch("top", "-a")
	if code != exitOwn || !strings.Contains(s.stderr.String(), "out of reach") || !strings.Contains(s.stdout.String(), "vm_db0000000002") {
		t.Errorf("exit code %d: %s%s", code, &s.stdout, &s.stderr)
	}
	f.answer["GET /vms/vm_web000000001/metrics"] = api.Problem{Status: 404, Error: "there is no such VM", Code: "vm_not_found"}
	if code := s.hatch("top"); code != 0 || strings.Contains(s.stdout.String(), "vm_web000000001") {
		t.Errorf("a VM that was deleted meanwhile: exit code %d: %s%s", code, &s.stdout, &s.stderr)
	}
}

// live runs top on a terminal until the VMs were looked at so often.
func live(t *testing.T, f *fakeServer, s *session, looks int, args ...string) string {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	seen := 0
	f.onMetrics = func() {
		if seen++; seen == looks {
			interrupt() // as ctrl-C does
		}
	}
	s.ctx, s.tty = ctx, true
	if code := s.hatch(append([]string{"top", "--interval", "100ms"}, args...)...); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	return s.stdout.String()
}

func TestTopIsLiveUntilInterrupted(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.env["NO_COLOR"] = "1"
	out := live(t, f, s, 3, "web")
	if !strings.HasPrefix(out, liveBegin) || !strings.HasSuffix(out, liveEnd) {
		t.Errorf("the terminal is not restored: %q", out)
	}
	if got := strings.Count(out, cursorHome); got != 2 {
		t.Errorf("drawn %d times: %q", got, out)
	}
	if strings.Contains(out, "\x1b[32m") {
		t.Errorf("coloured in spite of NO_COLOR: %q", out)
	}
	delete(s.env, "NO_COLOR")
	if out := live(t, f, s, 2, "web"); !strings.Contains(out, "\x1b[32mrunning\x1b[0m") {
		t.Errorf("not coloured: %q", out)
	}
}

func TestTopStaysWithinItsTerminal(t *testing.T) {
	f := newFake(t)
	for i := range 10 {
		v := f.vms[0]
		v.ID = fmt.Sprintf("vm_more0000000%d", i)
		f.vms = append(f.vms, v)
	}
	s := newSession(t, f)
	s.width, s.height = 40, 5
	s.env["NO_COLOR"] = "1"
	out := live(t, f, s, 12)
	frame, _, _ := strings.Cut(strings.TrimPrefix(out, liveBegin+cursorHome), liveEnd)
	lines := strings.Split(frame, "\n")
	if len(lines) != 5 || !strings.Contains(lines[4], "8 more lines") {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	for _, line := range lines {
		if text := strings.TrimPrefix(strings.TrimPrefix(line, clearBelow), clearLine); len([]rune(text)) > 40 {
			t.Errorf("too long: %q", text)
		}
	}
}

func TestTopFollowsTheTerminalsSize(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.resized = make(chan os.Signal, 1)
	s.resized <- os.Interrupt // whichever: it only wakes
	if out := live(t, f, s, 2, "web"); strings.Count(out, cursorHome) != 2 {
		t.Errorf("not drawn anew: %q", out)
	}
}

func TestTopOutlivesAServerThatIsAway(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	away := func() {
		f.answer["GET /vms"] = api.Problem{Status: 503, Error: "starting\x1b[2J up", Code: "starting_up"}
	}
	ctx, interrupt := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer interrupt()
	f.onMetrics = away
	s.ctx, s.tty = ctx, true
	if code := s.hatch("top", "--interval", "100ms"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	out := s.stdout.String()
	last := out[strings.LastIndex(out, cursorHome):]
	if !strings.Contains(last, "starting up") || !strings.Contains(last, "vm_web000000001") || !strings.HasSuffix(out, liveEnd) {
		t.Errorf("got %q", last)
	}
}

func TestCutKeepsColours(t *testing.T) {
	for _, c := range []struct {
		line  string
		width int
		want  string
	}{
		{"abc", 5, "abc"},
		{"abcdef", 3, "abc"},
		{"a\x1b[32mbcd\x1b[0me", 2, "a\x1b[32mb\x1b[0m"},
		{"äöü", 2, "äö"},
	} {
		if got := cut(c.line, c.width); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.line, c.width, got, c.want)
		}
	}
}

func TestBytesAreShort(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.0K", 1536: "1.5K", 100 << 20: "100M", 5 << 30: "5.0G", 1 << 62: "4.0E"} {
		t.Run(want, func(t *testing.T) {
			if got := bytesText(n); got != want {
				t.Errorf("%d: %s, want %s", n, got, want)
			}
		})
	}
}
