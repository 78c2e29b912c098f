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

func TestAJailedProcessIsUnprivileged(t *testing.T) {
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
			t.Run(got["Name"]+" "+name, func(t *testing.T) {
				if got[name] != want {
					t.Errorf("%s of thread %s is %q, want %q", name, got["Name"], got[name], want)
				}
			})
		}
	}
	if got := strings.Fields(status(t, proc(pid, "status"))["NSpid"]); len(got) < 2 || got[len(got)-1] != "1" {
		t.Errorf("its PIDs are %v: it has no PID namespace of its own", got)
	}
	for _, kind := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		t.Run(kind, func(t *testing.T) {
			name := "ns/" + kind
			theirs, err := os.Readlink(proc(pid, name))
			if ours, _ := os.Readlink("/proc/self/" + name); err != nil || theirs == ours {
				t.Errorf("its namespace %s is the host's (%v)", name, err)
			}
		})
	}
	limits, err := os.ReadFile(proc(pid, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"Max open files": openFiles, "Max core file size": 0, "Max file size": max(maxState, int64(s.MemMiB)<<20)} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(string(limits), fmt.Sprintf("%-26s%d ", name, want)) {
				t.Errorf("%s is not %d:\n%s", name, want, limits)
			}
		})
	}
}

func TestAJailedProcessSeesOnlyItsOwnFiles(t *testing.T) {
	l := newLab(t, false)
	s, other := l.spec(t), l.spec(t)
	m, _ := l.run(t, s)
	l.run(t, other)
	pid := m.Handle().PID

	// Its root directory has only its own files, and its mount namespace has only the
	// mount of the memory file besides.
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
		t.Run(path[1:], func(t *testing.T) {
			if !slices.Contains(got, path) {
				t.Errorf("it does not see %s: %v", path, got)
			}
		})
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
	for name, c := range map[string]struct {
		path string
		may  bool
	}{
		"disk 0": {s.Disks[0].Path, true}, "disk 1": {s.Disks[1].Path, true}, "memory": {s.Memory, true},
		"copy of the seed": {proc(pid, "root/disk2"), true}, "seed": {s.Disks[2].Path, false},
		"disk of another": {other.Disks[1].Path, false}, "seed of another": {other.Disks[2].Path, false}, "memory of another": {other.Memory, false},
	} {
		t.Run(name, func(t *testing.T) {
			if canRead(t, s.UID, c.path) != c.may {
				t.Errorf("its user can read %s: %v, want %v", c.path, !c.may, c.may)
			}
		})
	}
}

// canRead reports whether a user may read a file, regardless of the modes of its
// directories.
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

// filesOf lists the files below a process's root directory.
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

// inode identifies a file regardless of its name.
type inode struct{ dev, ino uint64 }

// inodeOf also returns the type of the file, S_IF….
func inodeOf(t *testing.T, path string) (i inode, kind uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return inode{st.Dev, st.Ino}, st.Mode & unix.S_IFMT
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

// requireOwnDescriptors checks that the process has its disks open, and no files of
// other machines.
func requireOwnDescriptors(t *testing.T, pid int, s, other vmm.Spec) {
	t.Helper()
	fds, err := filepath.Glob(proc(pid, "fd/*"))
	if err != nil {
		t.Fatal(err)
	}
	own, others, open := inodesOf(t, s), inodesOf(t, other), map[inode]bool{}
	for _, fd := range fds {
		i, kind := inodeOf(t, fd)
		open[i] = true
		link, err := os.Readlink(fd)
		if err != nil {
			t.Fatal(err)
		}
		isFile := kind == unix.S_IFIFO || kind == unix.S_IFREG && !strings.HasPrefix(link, "anon_inode:")
		if (isFile || others[i]) && !own[i] {
			t.Errorf("it has %s open, which is not its own", link)
		}
	}
	for _, d := range s.Disks[:2] {
		if i, _ := inodeOf(t, d.Path); !open[i] {
			t.Errorf("it does not have its disk %s open", d.Serial)
		}
	}
}

// requireSealed checks that the process can write only to the files that it needs to,
// and cannot make new ones.
func requireSealed(t *testing.T, pid int, s vmm.Spec) {
	t.Helper()
	writable := []string{"/disk1", "/memory", "/state", "/log", "/metrics", "/dev/kvm", "/dev/net/tun", "/dev/urandom", "/dev/userfaultfd", "/api.sock", "/vsock.sock"}
	for _, path := range filesOf(t, pid) {
		var st unix.Stat_t
		if err := unix.Lstat(proc(pid, "root")+path, &st); err != nil {
			t.Fatal(err)
		}
		may := st.Mode&unix.S_IWOTH != 0 || int(st.Uid) == s.UID && st.Mode&unix.S_IWUSR != 0
		if may != slices.Contains(writable, path) {
			t.Errorf("it may write to %s: %v, want %v (owner %d, mode %#o)", path, may, !may, st.Uid, st.Mode)
		}
	}
}

// A process of a machine with a network device is in the host's network namespace, and
// has only its own TAP open.
func TestAJailedProcessHasOnlyItsOwnTAP(t *testing.T) {
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
			t.Errorf("it has the TAPs %v, want only %s", got, names[i])
		}
		for kind, ours := range map[string]bool{"net": true, "pid": false, "mnt": false, "ipc": false, "uts": false} {
			t.Run(names[i]+" "+kind, func(t *testing.T) {
				theirs, err := os.Readlink(proc(pid, "ns/"+kind))
				if mine, _ := os.Readlink("/proc/self/ns/" + kind); err != nil || (theirs == mine) != ours {
					t.Errorf("its namespace %s is the host's: %v, want %v (%v)", kind, theirs == mine, ours, err)
				}
			})
		}
	}
}

// tapsOf returns the names of the TAPs that a process has open.
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

func TestAJailedProcessHasTheLimitsOfItsCgroup(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, _ := l.run(t, s)
	if note := m.(*machine).Proc.Note(); note != "" {
		t.Fatalf("this host's cgroups cannot be used: %s", note)
	}
	const mem, tasks = (2*memMiB + overheadMiB) << 20, 1 + extraTasks // a machine with a memory file
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
		t.Run(filepath.Base(form), func(t *testing.T) {
			path := filepath.Join("/sys/fs/cgroup", fmt.Sprintf(form, s.ID))
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != value {
				t.Errorf("%s is %q, %v, want %s", path, got, err, value)
			}
			members, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cgroup.procs"))
			if err != nil || strings.TrimSpace(string(members)) != fmt.Sprint(m.Handle().PID) {
				t.Errorf("the cgroup of %s has the processes %q, %v, want only %d", path, members, err, m.Handle().PID)
			}
		})
	}
}
