package vmmtest

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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	var last atomic.Int32
	root, fake := t.TempDir(), NewFake()
	Run(t, Harness{
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
		Break:   func(*vmm.Spec) { fake.FailNextStart(errs.New(errs.Internal, "injected", "injected")) },
		KeepMiB: 4,
		Crash:   func(_ *testing.T, h vmm.Handle) { fake.Crash(h.ID) },
		Limits:  func(_ *testing.T, m vmm.Machine) vmm.RateLimits { return fake.Limits(m.Handle().ID) },
		Leftovers: func(spec vmm.Spec) []string {
			if g := fake.host.guest(spec.ID); g != nil && !g.gone() {
				return []string{"the machine"}
			}
			return nil
		},
	})
}

func TestFakeClosesTheTAP(t *testing.T) {
	fake := NewFake()
	for _, fail := range []bool{false, true} {
		if fail {
			fake.FailNextStart(errs.New(errs.Internal, "injected", "injected"))
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
	}
}

func TestFakeAgentCanBePluggedIn(t *testing.T) {
	fake := NewFake(WithAgent(func(id string, conn net.Conn) { _, _ = fmt.Fprintf(conn, "agent of %s\n", id) }))
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

func TestFakeCanBeDeafFromOutside(t *testing.T) {
	fake := NewFake()
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
