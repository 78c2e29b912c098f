//go:build linux && amd64 && system

package firecracker

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

func proc(pid int, name string) string { return filepath.Join("/proc", fmt.Sprint(pid), name) }

// status reads a process's or thread's status file.
func status(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func TestAJailedProcessHasNoPower(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, _ := l.run(t, s)
	pid := m.Handle().PID
	threads, err := filepath.Glob(proc(pid, "task/*/status"))
	if err != nil || len(threads) < 3 {
		t.Fatalf("it has the threads %v, %v", threads, err)
	}
	none, uid := "0000000000000000", fmt.Sprint(s.UID)
	for _, path := range threads {
		got := status(t, path)
		for name, want := range map[string]string{
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2", "Groups": "",
			"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{uid, uid, uid, uid}, " "),
		} {
			if got[name] != want {
				t.Errorf("%s of thread %s is %q, want %q", name, got["Name"], got[name], want)
			}
		}
	}
	if got := strings.Fields(status(t, proc(pid, "status"))["NSpid"]); len(got) < 2 || got[len(got)-1] != "1" {
		t.Errorf("its PIDs are %v: it has no namespace of its own", got)
	}
	for _, kind := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		name := "ns/" + kind
		theirs, err := os.Readlink(proc(pid, name))
		if ours, _ := os.Readlink("/proc/self/" + name); err != nil || theirs == ours {
			t.Errorf("its namespace %s is the host's (%v)", name, err)
		}
	}
	limits, err := os.ReadFile(proc(pid, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"Max open files": openFiles, "Max core file size": 0, "Max file size": max(maxState, int64(s.MemMiB)<<20)} {
		if !strings.Contains(string(limits), fmt.Sprintf("%-26s%d ", name, want)) {
			t.Errorf("%s is not %d:\n%s", name, want, limits)
		}
	}
}

func TestAJailedProcessSeesItsOwnFilesOnly(t *testing.T) {
	l := newLab(t, false)
	s, other := l.spec(t), l.spec(t)
	m, _ := l.run(t, s)
	l.run(t, other)
	pid := m.Handle().PID

	// Its root directory is its own, and nothing else is mounted into its view
	// but the file for its memory.
	want := []string{
		"/", "/api.sock", "/dev", "/dev/kvm", "/dev/net", "/dev/net/tun", "/dev/urandom", "/dev/userfaultfd", "/disk0", "/disk1", "/disk2",
		"/firecracker", "/firecracker.pid", "/kernel", "/log", "/memory", "/metrics", "/run", "/state", "/vsock.sock",
	}
	got := filesOf(t, pid)
	for _, path := range got {
		if !slices.Contains(want, path) {
			t.Errorf("it sees %s", path)
		}
	}
	for _, path := range []string{"/kernel", "/disk0", "/memory"} {
		if !slices.Contains(got, path) {
			t.Errorf("it does not see %s: %v", path, got)
		}
	}
	mounts, err := os.ReadFile(proc(pid, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; point != "/" && point != "/memory" {
			t.Errorf("it has the mount %s", line)
		}
	}
	requireOwnDescriptors(t, pid, s, other)
	requireSealed(t, pid, s)
	for path, may := range map[string]bool{
		s.Disks[0].Path: true, s.Disks[1].Path: true, s.Memory: true, proc(pid, "root/disk2"): true, // its own, and a copy of its seed
		s.Disks[2].Path: false, other.Disks[1].Path: false, other.Disks[2].Path: false, other.Memory: false,
	} {
		if canRead(t, s.UID, path) != may {
			t.Errorf("that its user can read %s is %v", path, !may)
		}
	}
}

// canRead reports whether a user may read a file, whatever the directories above
// it forbid.
func canRead(t *testing.T, uid int, path string) bool {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }()
	head := exec.Command("head", "-c1", "/proc/self/fd/3")
	head.ExtraFiles = []*os.File{file}
	head.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	return head.Run() == nil
}

// filesOf lists what a process sees.
func filesOf(t *testing.T, pid int) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(proc(pid, "root")), ".", func(path string, _ fs.DirEntry, err error) error {
		files = append(files, filepath.Join("/", path))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// inode is what a file is, whatever its name.
type inode struct{ dev, ino uint64 }

func inodeOf(t *testing.T, path string) (i inode, mode os.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return inode{sys.Dev, sys.Ino}, st.Mode()
}

// inodesOf returns the files of a machine: those in its run directory, and its
// memory.
func inodesOf(t *testing.T, s vmm.Spec) map[inode]bool {
	t.Helper()
	memory, _ := inodeOf(t, s.Memory)
	all := map[inode]bool{memory: true}
	err := filepath.WalkDir(s.Dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			i, _ := inodeOf(t, path)
			all[i] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// requireOwnDescriptors checks that the process holds files of its own machine
// only, and its disks among them.
func requireOwnDescriptors(t *testing.T, pid int, s, other vmm.Spec) {
	t.Helper()
	fds, err := filepath.Glob(proc(pid, "fd/*"))
	if err != nil {
		t.Fatal(err)
	}
	own, others, held := inodesOf(t, s), inodesOf(t, other), map[inode]bool{}
	for _, fd := range fds {
		i, mode := inodeOf(t, fd)
		held[i] = true
		link, err := os.Readlink(fd)
		if err != nil {
			t.Fatal(err)
		}
		isFile := mode&os.ModeNamedPipe != 0 || mode.IsRegular() && !strings.HasPrefix(link, "anon_inode:")
		if (isFile || others[i]) && !own[i] {
			t.Errorf("it holds %s, which is not its own", link)
		}
	}
	for _, d := range s.Disks[:2] {
		if i, _ := inodeOf(t, d.Path); !held[i] {
			t.Errorf("it does not hold its disk %s", d.Serial)
		}
	}
}

// requireSealed checks that the process can write to nothing but what it must,
// and make nothing new.
func requireSealed(t *testing.T, pid int, s vmm.Spec) {
	t.Helper()
	writable := []string{"/disk1", "/memory", "/state", "/log", "/metrics", "/dev/kvm", "/dev/net/tun", "/dev/urandom", "/dev/userfaultfd", "/api.sock", "/vsock.sock"}
	for _, path := range filesOf(t, pid) {
		st, err := os.Lstat(proc(pid, "root") + path)
		if err != nil {
			t.Fatal(err)
		}
		owner, mode := st.Sys().(*syscall.Stat_t).Uid, st.Mode().Perm()
		may := mode&0o002 != 0 || int(owner) == s.UID && mode&0o200 != 0
		if may != slices.Contains(writable, path) {
			t.Errorf("that it may write to %s is %v (owner %d, mode %v)", path, may, owner, st.Mode())
		}
	}
}

// With a network it is in the host's network namespace, which VMs have in common,
// and holds one TAP: its own.
func TestAJailedProcessHoldsItsOwnTAPOnly(t *testing.T) {
	l := newLab(t, false)
	var pids []int
	names := []string{"hatchfc3", "hatchfc4"}
	for i, name := range names {
		s := l.spec(t)
		tap, _ := newTAP(t, name)
		s.NIC = &vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0xa, 0xb, byte(i)}, TAP: tap}
		m, _ := l.run(t, s)
		pids = append(pids, m.Handle().PID)
	}
	for i, pid := range pids {
		if got := tapsOf(t, pid); !slices.Equal(got, names[i:i+1]) {
			t.Errorf("it holds the TAPs %v, want %s alone", got, names[i])
		}
		for kind, ours := range map[string]bool{"net": true, "pid": false, "mnt": false, "ipc": false, "uts": false} {
			theirs, err := os.Readlink(proc(pid, "ns/"+kind))
			if mine, _ := os.Readlink("/proc/self/ns/" + kind); err != nil || (theirs == mine) != ours {
				t.Errorf("that its namespace %s is the host's is %v (%v)", kind, theirs == mine, err)
			}
		}
	}
}

// tapsOf returns the TAPs that a process has attached to.
func tapsOf(t *testing.T, pid int) (names []string) {
	t.Helper()
	fds, err := filepath.Glob(proc(pid, "fdinfo/*"))
	if err != nil || len(fds) == 0 {
		t.Fatalf("it has the descriptors %v, %v", fds, err)
	}
	for _, path := range fds {
		if name := status(t, path)["iff"]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

func TestAJailedProcessIsHeldToItsCgroupsLimits(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, _ := l.run(t, s)
	if note := m.(*machine).proc.Note(); note != "" {
		t.Fatalf("this host's cgroups cannot be used: %s", note)
	}
	const mem, tasks = (2*memMiB + overheadMiB) << 20, 1 + extraTasks // its memory is kept in a file
	want := map[string]string{
		"memory/hatch/%s/memory.limit_in_bytes": fmt.Sprint(mem), "pids/hatch/%s/pids.max": fmt.Sprint(tasks),
		"cpu/hatch/%s/cpu.cfs_quota_us": "150000", "cpu/hatch/%s/cpu.cfs_period_us": "100000",
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		want = map[string]string{
			"hatch/%s/memory.max": fmt.Sprint(mem), "hatch/%s/pids.max": fmt.Sprint(tasks), "hatch/%s/cpu.max": "150000 100000",
		}
	}
	for form, value := range want {
		path := filepath.Join("/sys/fs/cgroup", fmt.Sprintf(form, s.ID))
		if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != value {
			t.Errorf("%s is %q, %v, want %s", path, got, err, value)
		}
		members, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(members)) != fmt.Sprint(m.Handle().PID) {
			t.Errorf("in the cgroup of %s are %q, %v, want %d alone", path, members, err, m.Handle().PID)
		}
	}
}
