package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// saveTests are the conformance tests of Save and Wake.
var saveTests = []conformance{
	{"a saved guest is woken in the same state, several times", testWake},
	{"a saved guest is resumed without a wake", testSaveAndResume},
	{"a guest that was saved is adopted and resumed", testAdoptSaved},
	{"a woken machine that never ran does not change the saved one", testWakeTwice},
	{"a guest continues after a failed save", testFailedSave},
	{"a machine without a file for its memory cannot be saved", testSaveWithoutMemory},
	{"a saved machine that does not match is refused", testUnusable},
	{"a cancelled wake leaves nothing", testCancelledWake},
	{"a machine that is gone cannot be saved", testSaveGone},
}

func savedDir(t *testing.T, spec vmm.Spec) string {
	t.Helper()
	dir := filepath.Join(spec.Dir, "saved")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// save saves the machine and ends it. It returns the directory with the saved machine.
func save(t *testing.T, m vmm.Machine, spec vmm.Spec) string {
	t.Helper()
	dir := savedDir(t, spec)
	began := time.Now()
	if err := m.Save(t.Context(), spec, dir); err != nil {
		t.Fatalf("cannot save: %v", err)
	}
	saved := time.Now()
	if paused, err := m.Paused(t.Context()); err != nil || !paused {
		t.Errorf("after a save, paused: %v, %v", paused, err)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("saved after %s, gone after %s", saved.Sub(began).Round(time.Millisecond/10), time.Since(began).Round(time.Millisecond/10))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// wake wakes a saved machine, whose guest stays paused. At the end of the test it
// kills the machine, unless that was closed.
func wake(t *testing.T, h Harness, spec vmm.Spec, dir string) *started {
	t.Helper()
	began := time.Now()
	m, err := h.Driver(t).Wake(t.Context(), spec, dir)
	if err != nil {
		t.Fatalf("cannot wake: %v", err)
	}
	t.Logf("wake returned after %s", time.Since(began).Round(time.Millisecond/10))
	s := &started{Machine: m, spec: spec}
	t.Cleanup(func() {
		if !s.closed {
			end(t, h, m, spec)
		}
	})
	if paused, err := m.Paused(t.Context()); err != nil || !paused {
		t.Errorf("after a wake, paused: %v, %v", paused, err)
	}
	s.console = DialConsole(t, m)
	return s
}

// pauseBetweenLines pauses a ticking guest between two lines, since a wake loses the
// beginning of an incomplete line, and returns the guest's last line.
func pauseBetweenLines(t *testing.T, m *started) string {
	t.Helper()
	for range 20 {
		m.console.Expect("tick ")
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		last := m.console.awaitSilence(10 * tickEvery)
		if !m.console.isInLine() {
			return last
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("every pause was within a line")
	return ""
}

// requireContinues resumes the guest and checks that it continues to count after last.
func requireContinues(t *testing.T, m *started, last string) {
	t.Helper()
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := nextTick(t, last)
	if rest := m.console.Expect("tick "); "tick "+rest != next {
		t.Fatalf("the line after %q is %q, want %q", last, "tick "+rest, next)
	}
}

func testWake(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	spec := m.spec
	for range 5 {
		last := pauseBetweenLines(t, m)
		m.closed = true
		dir := save(t, m, spec)
		requireNothingLeft(t, h, spec)
		m = wake(t, h, spec, dir)
		requireContinues(t, m, last)
		agent := dialLines(t, m, vmm.ChannelAgent)
		agent.Say("hello")
		agent.Expect(agentPrefix + "hello")
		m.console.Say("echo awake")
		m.console.Expect("echo: awake")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	m.console.Say("poweroff")
	requireExit(t, m, vmm.ExitShutdown)
	requireNothingLeft(t, h, spec)
}

func testSaveAndResume(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	for range 2 {
		agent := dialLines(t, m, vmm.ChannelAgent)
		agent.sayUntilAnswered("hello", agentPrefix+"hello")
		last := pauseBetweenLines(t, m)
		dir := savedDir(t, m.spec)
		if err := m.Save(t.Context(), m.spec, dir); err != nil {
			t.Fatal(err)
		}
		requireContinues(t, m, last)
		m.console.Say("echo still here")
		m.console.Expect("echo: still here")
		agent.requireAnswerOrEnd("still there", agentPrefix+"still there")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// The daemon may end between a save and the next operation.
func testAdoptSaved(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	last := pauseBetweenLines(t, m)
	if err := m.Save(t.Context(), m.spec, savedDir(t, m.spec)); err != nil {
		t.Fatal(err)
	}
	m.close(t)
	next := &started{Machine: adopt(t, h, m), spec: m.spec}
	if paused, err := next.Paused(t.Context()); err != nil || !paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	next.console = DialConsole(t, next)
	requireContinues(t, next, last)
}

func testWakeTwice(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	last := pauseBetweenLines(t, m)
	m.closed = true
	dir := save(t, m, m.spec)
	before := contents(t, dir)
	first := wake(t, h, m.spec, dir)
	first.close(t)
	// The next daemon adopts a machine whose guest is paused, and kills it.
	next := adopt(t, h, first)
	if paused, err := next.Paused(t.Context()); err != nil || !paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	if err := next.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireNothingLeft(t, h, m.spec)
	requireSame(t, dir, before)
	requireContinues(t, wake(t, h, m.spec, dir), last)
}

func testFailedSave(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	if err := m.Save(t.Context(), m.spec, filepath.Join(m.spec.Dir, "no", "such")); err == nil {
		t.Fatal("saved into a directory that does not exist")
	}
	dir := savedDir(t, m.spec)
	broken := m.spec
	broken.Disks = append(broken.Disks, vmm.Disk{Serial: "missing", Path: filepath.Join(m.spec.Dir, "missing")})
	if err := m.Save(t.Context(), broken, dir); err == nil { // fails last, in the manifest
		t.Fatal("saved with a disk that does not exist")
	}
	if left := contents(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.console.Expect("tick ")
	m.console.Say("echo running")
	m.console.Expect("echo: running")
	if err := m.Save(t.Context(), m.spec, dir); err != nil {
		t.Errorf("a save after two that failed: %v", err)
	}
}

func testSaveWithoutMemory(t *testing.T, h Harness) {
	d, spec := h.Driver(t), h.Spec(t)
	spec.Memory = ""
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, h, m, spec) })
	requireRefused(t, m.Save(t.Context(), spec, savedDir(t, spec)), errs.Unsupported)
	if paused, err := m.Paused(t.Context()); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
}

func testUnusable(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	last := pauseBetweenLines(t, m)
	m.closed = true
	dir := save(t, m, m.spec)
	d := h.Driver(t)
	for name, c := range unusableCases(t, dir) {
		t.Run(name, func(t *testing.T) {
			changed := filepath.Join(t.TempDir(), "saved")
			if err := os.CopyFS(changed, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			spec := m.spec
			c.change(changed, &spec)
			before := contents(t, changed)
			woken, err := d.Wake(t.Context(), spec, changed)
			if err == nil {
				end(t, h, woken, spec)
				t.Fatal("it was woken")
			}
			if !errs.HasCode(err, "saved_unusable") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, want one with %q", err, c.says)
			}
			requireSame(t, changed, before)
			requireNothingLeft(t, h, spec)
		})
	}
	requireContinues(t, wake(t, h, m.spec, dir), last) // the unchanged one is woken
}

// unusableCase is a change that makes a saved machine unusable.
type unusableCase struct {
	change func(dir string, spec *vmm.Spec)
	says   string
}

func unusableCases(t *testing.T, dir string) map[string]unusableCase {
	t.Helper()
	manifest := func(change func(*vmm.Saved)) func(string, *vmm.Spec) {
		return func(to string, _ *vmm.Spec) {
			s, err := vmm.ReadSaved(dir)
			if err != nil {
				t.Fatal(err)
			}
			change(&s)
			if err := s.Write(to); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(name string, change func([]byte) []byte) func(string, *vmm.Spec) {
		return func(to string, _ *vmm.Spec) {
			path := filepath.Join(to, name)
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	spec := func(change func(*vmm.Spec)) func(string, *vmm.Spec) {
		return func(_ string, s *vmm.Spec) { change(s) }
	}
	return map[string]unusableCase{
		"truncated devices":  {file(vmm.SavedDevices, func(b []byte) []byte { return b[:len(b)-1] }), "devices"},
		"empty devices":      {file(vmm.SavedDevices, func([]byte) []byte { return nil }), "devices"},
		"a flipped bit":      {file(vmm.SavedDevices, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), "damaged"},
		"truncated manifest": {file(vmm.SavedManifest, func(b []byte) []byte { return b[:len(b)/2] }), "manifest"},
		"no manifest": {func(to string, _ *vmm.Spec) {
			if err := os.Remove(filepath.Join(to, vmm.SavedManifest)); err != nil {
				t.Fatal(err)
			}
		}, "manifest"},
		"another format":  {manifest(func(s *vmm.Saved) { s.Format++ }), "format"},
		"another driver":  {manifest(func(s *vmm.Saved) { s.Driver = "other" }), "driver"},
		"another version": {manifest(func(s *vmm.Saved) { s.Version = "0.0.1" }), "version"},
		"another accel":   {manifest(func(s *vmm.Saved) { s.Accel = "other" }), "acceleration"},
		"another cpu":     {manifest(func(s *vmm.Saved) { s.CPU = "other" }), "processor"},
		"more memory":     {spec(func(s *vmm.Spec) { s.MemMiB++ }), "memory"},
		"more cpus":       {spec(func(s *vmm.Spec) { s.VCPUs++ }), "CPUs"},
		"another origin":  {spec(func(s *vmm.Spec) { s.Origin = map[string]string{"kernel": "sha256:other"} }), "kernel"},
		"no memory":       {spec(func(s *vmm.Spec) { s.Memory += ".gone" }), "memory"},
		"another base":    {spec(func(s *vmm.Spec) { s.Base = newMemfd(t, int64(s.MemMiB)<<20-4096) }), "memory"},
		"one disk more":   {spec(func(s *vmm.Spec) { s.Disks = append([]vmm.Disk{{Serial: "more"}}, s.Disks...) }), "disks"},
		"a missing disk": {func(to string, s *vmm.Spec) {
			missing := vmm.Disk{Serial: "missing", Path: filepath.Join(to, "missing")}
			s.Disks = append(slices.Clip(s.Disks), missing)
			manifest(func(saved *vmm.Saved) { saved.Disks = append(saved.Disks, vmm.SavedDisk{Serial: missing.Serial}) })(to, s)
		}, "missing cannot be read"},
	}
}

func testCancelledWake(t *testing.T, h Harness) {
	_, m := boot(t, h)
	m.console.Say("tick")
	m.console.Expect("tick 3")
	last := pauseBetweenLines(t, m)
	m.closed = true
	dir := save(t, m, m.spec)
	before := openDescriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	woken, err := h.Driver(t).Wake(ctx, m.spec, dir)
	if err == nil {
		end(t, h, woken, m.spec)
		t.Fatal("it was woken")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	requireNothingLeft(t, h, m.spec)
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors are open after the wake, and %d were before", after, before)
	}
	requireContinues(t, wake(t, h, m.spec, dir), last)
}

func testSaveGone(t *testing.T, h Harness) {
	_, m := boot(t, h)
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireRefused(t, m.Save(t.Context(), m.spec, savedDir(t, m.spec)), errs.NotFound)
}

// contents returns the files in a directory.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, e := range entries {
		if found[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func requireSame(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	got := contents(t, dir)
	if len(got) != len(want) {
		t.Errorf("%s holds %d files, want %d", dir, len(got), len(want))
	}
	for name, text := range want {
		if !bytes.Equal(got[name], text) {
			t.Errorf("%s has changed", name)
		}
	}
}
