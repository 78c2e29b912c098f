//go:build linux && amd64 && system

package firecracker

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
)

// lab makes machines with the probe as their guest.
type lab struct {
	root     string
	memory   string // a folder on a tmpfs
	kernel   string
	unjailed bool
	last     atomic.Int32
}

const firstUID = 914000

func newLab(t testing.TB, unjailed bool) *lab {
	t.Helper()
	memory, err := os.MkdirTemp("/dev/shm", "firecracker")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(memory); err != nil {
			t.Error(err)
		}
	})
	return &lab{root: t.TempDir(), memory: memory, kernel: probe.Build(t), unjailed: unjailed}
}

func (l *lab) driver(t testing.TB) *Driver {
	t.Helper()
	d, err := New(t.Context(), Config{
		Binary: probe.Firecracker(t), Jailer: probe.Jailer(t), Unjailed: l.unjailed, AnyKVM: true,
		Kernels: filepath.Join(l.memory, "kernels"),
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// spec returns the spec of a machine with one writable and two read-only disks, and
// without a network device.
func (l *lab) spec(t testing.TB) vmm.Spec {
	t.Helper()
	n := l.last.Add(1)
	id := fmt.Sprintf("vm_f%d_%d", os.Getpid(), n)
	dir := filepath.Join(l.root, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := vmm.Spec{
		ID: id, Dir: dir, VCPUs: 1, MemMiB: memMiB, Kernel: l.kernel, Cmdline: "console=ttyS0",
		Origin: map[string]string{"kernel": "sha256:test"},
		Disks: []vmm.Disk{
			{Serial: "base", Path: newDisk(t, dir, "base", 0o444), ReadOnly: true},
			{Serial: "own", Path: newDisk(t, dir, "own", 0o600)},
			{Serial: "seed", Path: newDisk(t, dir, "seed", 0o600), ReadOnly: true},
		},
	}
	if !l.unjailed {
		s.UID, s.GID = firstUID+int(n), firstUID+int(n)
	}
	s.Memory = l.newMemory(t, id, s.UID)
	return s
}

const memMiB = 128

// newMemory makes the file for a guest's memory.
func (l *lab) newMemory(t testing.TB, name string, uid int) string {
	t.Helper()
	path := filepath.Join(l.memory, name)
	err := os.WriteFile(path, nil, 0o600)
	if err == nil {
		err = os.Truncate(path, memMiB<<20)
	}
	if err == nil {
		err = os.Chown(path, uid, uid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newDisk makes a sparse disk that begins with its name.
func newDisk(t testing.TB, dir, name string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name+".img")
	if err := os.WriteFile(path, []byte(name), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

func (l *lab) harness() vmmtest.Harness {
	return vmmtest.Harness{
		Driver: func(t *testing.T) vmm.Driver { return l.driver(t) }, Spec: func(t *testing.T) vmm.Spec { return l.spec(t) }, Root: l.root,
		Break: func(s *vmm.Spec) { s.Kernel = s.Disks[0].Path }, // Firecracker refuses it: it is not a kernel
		Crash: func(t *testing.T, h vmm.Handle) {
			if err := unix.Kill(h.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Hang:      func(t *testing.T, h vmm.Handle) func() { return vmmtest.Suspend(t, h.PID) },
		KeepMiB:   4,
		Limits:    limitsOf,
		Leftovers: leftovers,
	}
}

// leftovers lists the machine's processes, mounts and cgroups that still exist, and
// files that the driver made.
func leftovers(s vmm.Spec) (left []string) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		left = append(left, err.Error())
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasSuffix(name, ".img"), name == vmm.LogName, name == "saved":
		default:
			left = append(left, name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/hatch/", "/sys/fs/cgroup/hatch/"} {
		dirs, err := filepath.Glob(pattern + s.ID)
		if err != nil {
			left = append(left, err.Error())
		}
		left = append(left, dirs...)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), s.Dir) {
		left = append(left, fmt.Sprintf("a mount (%v)", err))
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		left = append(left, err.Error())
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), "\x00"+jailID(s.ID)+"\x00") {
			left = append(left, path)
		}
	}
	return left
}

func TestFirecrackerConforms(t *testing.T) {
	for name, unjailed := range map[string]bool{"jailed": false, "unjailed": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, unjailed)
			before := openFilesOf(t)
			vmmtest.Run(t, l.harness())
			if after := openFilesOf(t); after > before {
				t.Errorf("%d files are open after the suite, and %d were before", after, before)
			}
		})
	}
}

func openFilesOf(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
