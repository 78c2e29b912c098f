//go:build linux && amd64 && system

package qemu

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/mapping"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// requireSharing checks machines that were woken from one base: they share the pages
// that they have not changed, and none of them can change the base.
func requireSharing(t *testing.T, machines []vmm.Handle) {
	t.Helper()
	var all usage
	for _, h := range machines {
		u := usageOf(t, h.PID)
		t.Logf("process %d has an RSS of %d MiB, a PSS of %d MiB and %d MiB of private dirty memory", h.PID, u.rss>>10, u.pss>>10, u.dirty>>10)
		all.rss, all.pss = all.rss+u.rss, all.pss+u.pss
		requireImmutableBase(t, h.PID)
	}
	t.Logf("%d machines use %d MiB; without sharing it would be %d MiB", len(machines), all.pss>>10, all.rss>>10)
	if all.pss > all.rss*3/4 {
		t.Error("they share less than a fourth")
	}
}

// usage is the memory of a process, in KiB.
type usage struct{ rss, pss, dirty int64 }

func usageOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		to, ok := map[string]*int64{"Rss": &u.rss, "Pss": &u.pss, "Private_Dirty": &u.dirty}[name]
		if !ok {
			continue
		}
		if _, err := fmt.Sscan(value, to); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// requireImmutableBase tries all ways to change the base through the process's own
// descriptors, as root.
func requireImmutableBase(t *testing.T, pid int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, path := range links {
		if name, err := os.Readlink(path); err != nil || name != mapping.Link(vmm.BaseName) {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		requireSealed(t, f)
		_ = f.Close()
		tried++
	}
	if tried == 0 {
		t.Error("the process has no base")
	}
}

func requireSealed(t *testing.T, f *os.File) {
	t.Helper()
	fd := int(f.Fd())
	_, write := f.WriteAt([]byte("x"), 0)
	_, shared := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	_, seals := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE)
	for way, err := range map[string]error{
		"a write": write, "a shared mapping": shared, "another seal": seals,
		"cutting it": unix.Ftruncate(fd, 0), "making it larger": unix.Ftruncate(fd, 1<<40),
		"a hole": unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096),
	} {
		t.Run(way, func(t *testing.T) {
			if err == nil {
				t.Errorf("%s is possible", way)
			}
		})
	}
}

func TestABaseThatCouldBeChangedIsRefused(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	for name, c := range map[string]struct {
		file  func(t *testing.T) *os.File
		seals int
		says  string
	}{
		"without seals":   {memfd(vmm.BaseName), 0, "not sealed"},
		"with some seals": {memfd(vmm.BaseName), baseSeals &^ unix.F_SEAL_WRITE, "not sealed"},
		"another name":    {memfd("other"), baseSeals, "instead of a memfd named hatch-base"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s
			s.Base = c.file(t)
			if _, err := unix.FcntlInt(s.Base.Fd(), unix.F_ADD_SEALS, c.seals); err != nil {
				t.Fatal(err)
			}
			f, err := openBase(s)
			if err == nil {
				_ = f.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, want one with %q", err, c.says)
			}
		})
	}
}

func memfd(name string) func(t *testing.T) *os.File {
	return func(t *testing.T) *os.File {
		t.Helper()
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { _ = f.Close() })
		if err := f.Truncate(memMiB << 20); err != nil {
			t.Fatal(err)
		}
		return f
	}
}

// baseOf copies a saved machine's memory to a base.
func baseOf(t *testing.T, s vmm.Spec) *os.File {
	t.Helper()
	content, err := os.ReadFile(s.Memory)
	if err != nil {
		t.Fatal(err)
	}
	f := memfd(vmm.BaseName)(t)
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, baseSeals); err != nil {
		t.Fatal(err)
	}
	return f
}

// saveAndEnd saves a machine into a directory of its run directory, and kills it.
func saveAndEnd(t *testing.T, m vmm.Machine, s vmm.Spec) string {
	t.Helper()
	dir := filepath.Join(s.Dir, "saved")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), s, dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// forkOf wakes a machine from the base and the saved devices of another one. It is
// killed at the end of the test.
func (l *lab) forkOf(t *testing.T, s vmm.Spec, base *os.File, dir string) vmm.Machine {
	t.Helper()
	s.Base = base
	own := filepath.Join(s.Dir, "saved")
	if err := os.MkdirAll(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := vmm.AdaptSaved(dir, own, s); err != nil {
		t.Fatal(err)
	}
	m, err := newDriver(t).Wake(t.Context(), s, own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		<-m.Exited()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.RemoveAll(own); err != nil {
		t.Fatal(err)
	}
	return m
}

// A fork's spec has its own MAC from the start. Its guest keeps the MAC of the
// original until the agent reidentifies it.
func TestAForkMayHaveAnotherMAC(t *testing.T) {
	l := newLab(t)
	s, fork := l.spec(t), l.spec(t)
	tap, _ := newTAP(t, "tap0")
	s.NIC = &vmm.NIC{MAC: net.HardwareAddr{0x02, 0xfc, 0, 0, 0, 7}, TAP: tap}
	m, c := l.run(t, s)
	c.Expect("guest ready")
	dir := saveAndEnd(t, m, s)

	tap, frames := newTAP(t, "tap1")
	fork.NIC = &vmm.NIC{MAC: net.HardwareAddr{0x02, 0xfc, 0, 0, 0, 8}, TAP: tap}
	woken := l.forkOf(t, fork, baseOf(t, s), dir)
	c = vmmtest.DialConsole(t, woken)
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Say("mac")
	c.Expect("mac: " + s.NIC.MAC.String())
	c.Say("netup")
	c.Expect("netup: ok")
	awaitFrameFrom(t, frames, s.NIC.MAC)
}

// Neither a full disk nor a full tmpfs ends a guest that is being saved.
func TestTheGuestRunsOnAfterASaveWithoutSpace(t *testing.T) {
	l := newLab(t)
	s, fork := l.spec(t), l.spec(t)
	m, c := l.run(t, s)
	c.Expect("guest ready")
	requireNoSpace(t, m, s, mountSmall(t, 16<<10), c)

	dir := saveAndEnd(t, m, s)
	base := baseOf(t, s)
	fork.Memory = filepath.Join(mountSmall(t, 1<<20), "memory")
	if err := os.WriteFile(fork.Memory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(fork.Memory, memMiB<<20); err != nil {
		t.Fatal(err)
	}
	woken := l.forkOf(t, fork, base, dir)
	c = vmmtest.DialConsole(t, woken)
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	into := filepath.Join(fork.Dir, "saved")
	if err := os.Mkdir(into, 0o700); err != nil {
		t.Fatal(err)
	}
	requireNoSpace(t, woken, fork, into, c)
}

// requireNoSpace saves where there is not enough space, and checks that the guest
// runs afterwards.
func requireNoSpace(t *testing.T, m vmm.Machine, s vmm.Spec, dir string, c *vmmtest.Console) {
	t.Helper()
	err := m.Save(t.Context(), s, dir)
	if err == nil {
		t.Fatal("it was saved without enough space")
	}
	t.Logf("the error is %v", err)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if paused, err := m.Paused(t.Context()); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	c.Say("echo still running")
	c.Expect("echo: still running")
}

// mountSmall mounts a tmpfs of size bytes.
func mountSmall(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
