//go:build linux && amd64 && system

package qemu

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
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/testguest"
)

// lab makes machines with the suite's guest.
type lab struct {
	root, memory, kernel, initramfs string
	last                            atomic.Int32
}

const (
	firstUID = 913000
	memMiB   = 192
)

func newLab(t testing.TB) *lab {
	t.Helper()
	return &lab{
		root:   shortDir(t, ""), // t.TempDir's paths are too long for sockets
		memory: shortDir(t, "/dev/shm"),
		kernel: testguest.Kernel(t), initramfs: testguest.Build(t),
	}
}

func shortDir(t testing.TB, below string) string {
	t.Helper()
	dir, err := os.MkdirTemp(below, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newDriver(t *testing.T) vmm.Driver {
	t.Helper()
	d, err := New(t.Context(), Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
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
	id := fmt.Sprintf("vm_t%d_%d", os.Getpid(), n)
	dir := filepath.Join(l.root, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	uid := firstUID + int(n)
	return vmm.Spec{
		ID: id, Dir: dir, VCPUs: 1, MemMiB: memMiB, Kernel: l.kernel, Initramfs: l.initramfs,
		Cmdline: "console=ttyS0 quiet panic=0", UID: uid, GID: uid,
		Memory: l.newMemory(t, id, uid), Origin: map[string]string{"kernel": "sha256:test"},
		Disks: []vmm.Disk{
			{Serial: "base", Path: newDisk(t, dir, "base"), ReadOnly: true},
			{Serial: "own", Path: newDisk(t, dir, "own")},
			{Serial: "seed", Path: newDisk(t, dir, "seed"), ReadOnly: true},
		},
	}
}

// newMemory makes the file of a guest's memory.
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

// newDisk makes a sparse disk that begins with its name. Only root may read it.
func newDisk(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name+".img")
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

func (l *lab) harness() vmmtest.Harness {
	return vmmtest.Harness{
		Driver: newDriver, Spec: func(t *testing.T) vmm.Spec { return l.spec(t) }, Root: l.root,
		Break:     func(s *vmm.Spec) { s.Kernel = s.Initramfs }, // QEMU refuses it: it is not a kernel
		Crash:     func(t *testing.T, h vmm.Handle) { killHard(t, h.PID) },
		Hang:      func(t *testing.T, h vmm.Handle) func() { return vmmtest.Suspend(t, h.PID) },
		KeepMiB:   16,
		Inspect:   requireSharing,
		Limits:    limitsOf,
		Leftovers: leftovers,
	}
}

func killHard(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// limitsOf asks QEMU for the limits of each disk and checks that they are the same.
func limitsOf(t *testing.T, m vmm.Machine) (all vmm.RateLimits) {
	t.Helper()
	for i := range 3 {
		var group struct {
			Bytes    int64 `json:"bps-total"`
			BytesMax int64 `json:"bps-total-max"`
			Ops      int64 `json:"iops-total"`
			OpsMax   int64 `json:"iops-total-max"`
		}
		err := m.(*machine).run(t.Context(), qmpCommand{name: "qom-get", args: map[string]any{
			"path": "/objects/" + limitName(i), "property": "limits",
		}}, &group)
		if err != nil && !strings.Contains(err.Error(), "not found") {
			t.Fatal(err)
		}
		limits := vmm.RateLimits{Disk: vmm.DiskLimit{BytesPerSecond: group.Bytes, OpsPerSecond: group.Ops}}
		if i > 0 && limits != all || group.BytesMax != group.Bytes || group.OpsMax != group.Ops {
			t.Errorf("disk %d has the limits %+v, and the disks before it %+v", i, group, all)
		}
		all = limits
	}
	return all
}

// leftovers lists the machine's sockets, cgroups and processes that still exist.
func leftovers(s vmm.Spec) (left []string) {
	found, err := filepath.Glob(filepath.Join(s.Dir, "*.sock"))
	if err != nil {
		left = append(left, err.Error())
	}
	left = append(left, found...)
	for _, pattern := range []string{"/sys/fs/cgroup/*/hatch/", "/sys/fs/cgroup/hatch/"} {
		dirs, err := filepath.Glob(pattern + s.ID)
		if err != nil {
			left = append(left, err.Error())
		}
		left = append(left, dirs...)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		left = append(left, err.Error())
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), marker(s.ID, s.Dir)) {
			left = append(left, path)
		}
	}
	return left
}

func TestQEMUConforms(t *testing.T) {
	l := newLab(t)
	before := openFilesOf(t)
	vmmtest.Run(t, l.harness())
	if after := openFilesOf(t); after > before {
		t.Errorf("%d files are open after the suite, and %d were before", after, before)
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
