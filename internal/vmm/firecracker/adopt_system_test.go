//go:build linux && amd64 && system

package firecracker

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
)

// driverCalled returns a driver whose Firecracker is a link to a file of that name: the
// file names of releases have the version in them.
func (l *lab) driverCalled(t *testing.T, name string) *Driver {
	t.Helper()
	program, err := os.ReadFile(probe.Firecracker(t))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, name), program, 0o755); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	link := filepath.Join(folder, "firecracker")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	d, err := New(t.Context(), Config{
		Binary: link, Jailer: probe.Jailer(t), AnyKVM: true,
		Kernels: filepath.Join(l.memory, "kernels"), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMachinesOutliveAnUpdateOfFirecrackerUnderAnotherName(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	before, after := l.driverCalled(t, "firecracker-v1.12.0-x86_64"), l.driverCalled(t, "firecracker-v1.13.0-x86_64")
	m, err := before.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	h := m.Handle()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	// No second machine runs on the disks of the first.
	if second, err := after.Start(t.Context(), s); !errs.HasCode(err, "machine_runs") {
		t.Fatalf("a second start: %v, %v; want machine_runs", second, err)
	}
	found, err := after.List(t.Context(), l.root)
	if err != nil || len(found) != 1 || found[0].PID != h.PID || found[0].Socket != h.Socket {
		t.Fatalf("listed %v, %v; want %v", found, err, h)
	}
	for _, h := range []vmm.Handle{h, found[0]} {
		adopted, err := after.Adopt(t.Context(), h)
		if err != nil {
			t.Fatalf("%v: %v", h, err)
		}
		if paused, err := adopted.Paused(t.Context()); err != nil || paused {
			t.Errorf("paused: %v, %v", paused, err)
		}
		if err := adopted.Close(); err != nil {
			t.Error(err)
		}
	}
	if ended := endAll(t, after, l.root); ended != 1 {
		t.Errorf("ended %d machines", ended)
	}
	if left := leftovers(s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m, err = after.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Handle().Exe; got != "/firecracker-v1.13.0-x86_64" {
		t.Errorf("the new machine runs %s", got)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// A process in a machine's cgroup that never executes Firecracker does not keep the
// machine from being listed, but from being started again.
func TestAProcessThatNeverExecutesFirecrackerDelaysNoList(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, _ := l.run(t, s)
	h, d := m.Handle(), l.driver(t)
	pending := exec.Command("cat")
	stdin, err := pending.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pending.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = pending.Wait(); jail.DefaultCgroups.Forget(s.ID) }()
	joinCgroup(t, s.ID, pending.Process.Pid)
	if done, err := d.awaitJailers(t.Context(), l.root, 20*time.Millisecond); done || err != nil {
		t.Errorf("done: %v, %v", done, err)
	}
	found, err := d.machines(l.root)
	if err != nil || len(found) != 1 || found[0].PID != h.PID {
		t.Errorf("listed %v, %v; want %v", found, err, h)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := d.Start(t.Context(), s); !errs.HasCode(err, "machine_runs") {
		t.Errorf("a start while the process runs: %v, want machine_runs", err)
	}
}

func joinCgroup(t *testing.T, name string, pid int) {
	t.Helper()
	joined := false
	for _, pattern := range []string{"/sys/fs/cgroup/*/hatch/", "/sys/fs/cgroup/hatch/"} {
		dirs, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
				t.Fatal(err)
			}
			joined = true
		}
	}
	if !joined {
		t.Fatal("the machine has no cgroup")
	}
}
