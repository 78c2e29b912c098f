package driver

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDriverConforms(t *testing.T) {
	var last atomic.Int32
	root, fake := t.TempDir(), New()
	vmmtest.Run(t, vmmtest.Harness{
		Root:   root,
		Driver: func(*testing.T) vmm.Driver { return fake.Again() },
		Spec: func(t *testing.T) vmm.Spec {
			id := fmt.Sprintf("vm_%d", last.Add(1))
			dir := filepath.Join(root, id)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			memory := filepath.Join(dir, "memory")
			if err := os.WriteFile(memory, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(memory, 64<<20); err != nil {
				t.Fatal(err)
			}
			return vmm.Spec{ID: id, Dir: dir, VCPUs: 1, MemMiB: 64, Memory: memory, Origin: map[string]string{"kernel": "sha256:test"}}
		},
		Break:   func(*vmm.Spec) { fake.Calls.Fail("Start", 1, errs.New(errs.Internal, "injected", "injected")) },
		KeepMiB: 4,
		Crash:   func(_ *testing.T, h vmm.Handle) { fake.Crash(h.ID) },
		Hang: func(_ *testing.T, h vmm.Handle) func() {
			fake.Hang(h.ID)
			return func() { fake.Unhang(h.ID) }
		},
		Limits: func(_ *testing.T, m vmm.Machine) vmm.RateLimits { return fake.Limits(m.Handle().ID) },
		Leftovers: func(spec vmm.Spec) []string {
			if g := fake.host.guest(spec.ID); g != nil && !g.gone() {
				return []string{"the machine"}
			}
			return nil
		},
	})
}

func TestDriverClosesTheTAP(t *testing.T) {
	fake := New()
	for _, fail := range []bool{false, true} {
		t.Run(fmt.Sprintf("%+v", fail), func(t *testing.T) {
			if fail {
				fake.Calls.Fail("Start", 1, errs.New(errs.Internal, "injected", "injected"))
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			m, err := fake.Start(t.Context(), vmm.Spec{ID: "vm_1", Dir: "/r/vm_1", NIC: &vmm.NIC{TAP: w}})
			if (err != nil) != fail {
				t.Fatal(err)
			}
			if _, err := r.Read(make([]byte, 1)); err == nil {
				t.Error("the TAP is still open")
			}
			_ = r.Close()
			if m != nil {
				fake.PowerOff("vm_1")
				<-m.Exited()
				_ = m.Close()
			}
		})
	}
}

func TestAgentCanBeReplaced(t *testing.T) {
	fake := New(WithAgent(func(id string, conn net.Conn) { _, _ = fmt.Fprintf(conn, "agent of %s\n", id) }))
	m, err := fake.Start(t.Context(), vmm.Spec{ID: "vm_1", Dir: "/r/vm_1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	conn, err := m.Dial(t.Context(), vmm.ChannelAgent)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "agent of vm_1\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestGuestIgnoresPowerButton(t *testing.T) {
	fake := New()
	fake.IgnorePowerButton("vm_1")
	m, err := fake.Start(t.Context(), vmm.Spec{ID: "vm_1", Dir: "/r/vm_1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.PowerButton(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Exited():
		t.Error("it reacted")
	default:
	}
}

// savable returns the spec of a machine whose memory can be saved.
func savable(t *testing.T) vmm.Spec {
	t.Helper()
	spec := vmm.Spec{ID: "vm_1", Dir: t.TempDir(), VCPUs: 1, MemMiB: 64}
	spec.Memory = filepath.Join(spec.Dir, "memory")
	if err := os.WriteFile(spec.Memory, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	return spec
}

// Each call fails as it is told to, and has no effect then.
func TestCallsFailWithoutEffect(t *testing.T) {
	fake, spec := New(), savable(t)
	var m vmm.Machine
	defer func() { _ = m.Close() }()
	for _, c := range []struct {
		name string
		do   func() error
		done func() bool // whether it has had its effect
	}{
		{"Start", func() (err error) { m, err = fake.Start(t.Context(), spec); return err }, func() bool { return m != nil }},
		{"List", func() error { _, err := fake.List(t.Context(), "/"); return err }, nil},
		{"Adopt", func() error {
			adopted, err := fake.Again().Adopt(t.Context(), m.Handle())
			if err == nil {
				err = adopted.Close()
			}
			return err
		}, nil},
		{"Save", func() error { return m.Save(t.Context(), spec, spec.Dir) }, func() bool { paused, err := m.Paused(t.Context()); return paused && err == nil }},
		{"Resume", func() error { return m.Resume(t.Context()) }, func() bool { paused, err := m.Paused(t.Context()); return !paused && err == nil }},
		{"Check", func() error { return fake.Check(spec, spec.Dir) }, nil},
		{"Kill", func() error { return m.Kill(t.Context()) }, func() bool { return m.Exit().Cause == vmm.ExitKilled }},
		{"Wake", func() error {
			old := m
			woken, err := fake.Wake(t.Context(), spec, spec.Dir)
			if err == nil {
				m, err = woken, old.Close()
			}
			return err
		}, func() bool { return m.Exit().Cause != vmm.ExitKilled }},
	} {
		fake.Calls.FailNext(c.name)
		if err := c.do(); err == nil || err.Error() != "injected: "+c.name {
			t.Fatalf("%s: the error is %v", c.name, err)
		}
		if c.done != nil && c.done() {
			t.Errorf("%s has had its effect", c.name)
		}
		if err := c.do(); err != nil {
			t.Fatalf("%s, once more: %v", c.name, err)
		}
		if c.done != nil && !c.done() || fake.Calls.Count(c.name) != 2 {
			t.Errorf("%s has had no effect, or was called %d times", c.name, fake.Calls.Count(c.name))
		}
	}
}

func TestAnotherVersionDoesNotWakeWhatWasSaved(t *testing.T) {
	fake, spec := New(), savable(t)
	m, err := fake.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Save(t.Context(), spec, spec.Dir); err != nil {
		t.Fatal(err)
	}
	later := fake.Again()
	later.Version = "2.0"
	if err := later.Check(spec, spec.Dir); !errs.HasCode(err, "saved_unusable") || later.Info().Version != "2.0" {
		t.Errorf("the check says %v", err)
	}
	if err := fake.Check(spec, spec.Dir); err != nil {
		t.Errorf("by the same version: %v", err)
	}
}
