//go:build linux && amd64 && system

package firecracker

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

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
	for _, path := range []string{other.Disks[1].Path, other.Memory, s.Disks[2].Path} {
		cat := exec.Command("cat", path)
		cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}}
		if cat.Run() == nil {
			t.Errorf("its user can read %s", path)
		}
	}
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

// requireOwnDescriptors checks that no open file is another machine's.
func requireOwnDescriptors(t *testing.T, pid int, s, other vmm.Spec) {
	t.Helper()
	fds, err := filepath.Glob(proc(pid, "fd/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(link, other.Dir) || link == other.Memory {
			t.Errorf("it holds %s", link)
		}
		// Files of its own root show without the root's path.
		if strings.HasPrefix(link, s.Dir) && !strings.HasPrefix(filepath.Base(link), "console.") && filepath.Base(link) != "log.pipe" {
			t.Errorf("it holds %s", link)
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
