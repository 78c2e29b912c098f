//go:build linux && amd64 && system

package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

// A guest that has taken over its VMM makes the calls of these tests: a debugger makes
// them inside the real process, while its guest runs.

// attempt is a call of a compromised VMM, and how the kernel answers.
type attempt struct {
	number uint64
	args   []any
	want   error // nil: a control, which succeeds
}

const here = -100 // AT_FDCWD

// makeAttempts makes all attempts in the process.
func makeAttempts(t *testing.T, d *debugger, attempts map[string]attempt) {
	t.Helper()
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) {
			if got, err := d.call(syscall64, a.number, a.args...); !errors.Is(err, a.want) {
				t.Errorf("the answer is %d, %v; want %v", got, err, a.want)
			}
		})
	}
}

func TestACompromisedVMMSeesNoFilesOfTheHost(t *testing.T) {
	l := newLab(t)
	s, other := l.spec(t), l.spec(t)
	m, _ := l.run(t, s)
	l.run(t, other)
	d := debug(t, m.Handle().PID)
	attempts := map[string]attempt{
		"control":     {unix.SYS_OPENAT, []any{here, "/dev/null", unix.O_RDWR}, nil},
		"new file":    {unix.SYS_OPENAT, []any{here, "/file", unix.O_RDWR | unix.O_CREAT, 0o600}, unix.EROFS},
		"new in /usr": {unix.SYS_OPENAT, []any{here, "/usr/file", unix.O_RDWR | unix.O_CREAT, 0o600}, unix.EROFS},
		"new folder":  {unix.SYS_MKDIR, []any{"/folder", 0o700}, unix.EROFS},
		"new in /dev": {unix.SYS_MKNOD, []any{"/dev/folder", unix.S_IFIFO}, unix.EROFS},
	}
	for _, path := range []string{
		"/etc/passwd", "/etc/hostname", "/root", "/home", "/var", "/tmp", "/run", "/sys", "/boot", "/dev/shm", "/dev/vda", "/dev/mem", "/dev/net/tun", "/dev/pts",
		"/../etc/passwd", "/proc/self/root/etc/passwd", "/proc/self/cwd/root",
		"/proc/sys", "/proc/version", "/proc/net", "/proc/mounts", "/proc/kmsg",
		s.Dir, s.Disks[1].Path, other.Dir, other.Disks[1].Path, other.Memory,
	} {
		attempts[path] = attempt{unix.SYS_OPENAT, []any{here, path, unix.O_RDONLY}, unix.ENOENT}
	}
	makeAttempts(t, d, attempts)

	may := []string{"/dev", "/dev/null", "/dev/urandom", "/etc", "/etc/alternatives", "/etc/ld.so.cache", "/proc", "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu"}
	if newDriver(t).Info().Accel == AccelKVM {
		may = append(may, "/dev/kvm")
	}
	root := fmt.Sprintf("/proc/%d/root", m.Handle().PID)
	for _, pattern := range []string{"/*", "/dev/*", "/etc/*"} {
		found, err := filepath.Glob(root + pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		for _, path := range found {
			if path = strings.TrimPrefix(path, root); !slices.Contains(may, path) {
				t.Errorf("it sees %s", path)
			}
		}
	}
}

func TestACompromisedVMMSeesNoOtherProcess(t *testing.T) {
	l := newLab(t)
	m, _ := l.run(t, l.spec(t))
	other, _ := l.run(t, l.spec(t))
	d := debug(t, m.Handle().PID)
	attempts := map[string]attempt{
		"control":                  {unix.SYS_OPENAT, []any{here, "/proc/self/cmdline", unix.O_RDONLY}, nil},
		"kill every process":       {unix.SYS_KILL, []any{-1, int(unix.SIGKILL)}, unix.ESRCH},
		"trace itself":             {unix.SYS_PTRACE, []any{unix.PTRACE_TRACEME}, unix.EPERM},
		"read memory of a process": {unix.SYS_PROCESS_VM_READV, []any{1, 0, 0, 0, 0, 0}, unix.EPERM},
		"hold a process":           {unix.SYS_PIDFD_OPEN, []any{1, 0}, unix.EPERM},
	}
	for name, pid := range map[string]int{"init": 1, "hatchd": os.Getpid(), "another VMM": other.Handle().PID} {
		attempts["arguments of "+name] = attempt{unix.SYS_OPENAT, []any{here, fmt.Sprintf("/proc/%d/cmdline", pid), unix.O_RDONLY}, unix.ENOENT}
		if pid != 1 { // which is itself
			attempts["signal to "+name] = attempt{unix.SYS_KILL, []any{pid, int(unix.SIGKILL)}, unix.ESRCH}
		}
	}
	makeAttempts(t, d, attempts)
	for _, kind := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", m.Handle().PID, kind))
		if ours, _ := os.Readlink("/proc/self/ns/" + kind); err != nil || theirs == ours {
			t.Errorf("its namespace %s is the host's (%v)", kind, err)
		}
	}
}

func TestACompromisedVMMMakesNoSocket(t *testing.T) {
	l := newLab(t)
	m, _ := l.run(t, l.spec(t))
	d := debug(t, m.Handle().PID)
	attempts := map[string]attempt{
		"control":      {unix.SYS_GETPID, nil, nil},
		"pair":         {unix.SYS_SOCKETPAIR, []any{unix.AF_UNIX, unix.SOCK_STREAM, 0, 0}, unix.EPERM},
		"connect":      {unix.SYS_CONNECT, []any{3, "\x01\x00/run/x", 10}, unix.EPERM},
		"bind":         {unix.SYS_BIND, []any{3, "\x01\x00/run/x", 10}, unix.EPERM},
		"io_uring":     {unix.SYS_IO_URING_SETUP, []any{8, strings.Repeat("\x00", 120)}, unix.EPERM},
		"BPF":          {unix.SYS_BPF, []any{0, 0, 0}, unix.EPERM},
		"user faults":  {unix.SYS_USERFAULTFD, []any{1}, unix.EPERM},
		"counters":     {unix.SYS_PERF_EVENT_OPEN, []any{0, 0, -1, -1, 0}, unix.EPERM},
		"keys":         {unix.SYS_KEYCTL, []any{0, -3, 0}, unix.EPERM},
		"descriptors":  {unix.SYS_MODIFY_LDT, []any{0, 0, 0}, unix.EPERM},
		"file handles": {unix.SYS_OPEN_BY_HANDLE_AT, []any{here, 0, 0}, unix.EPERM},
		"mount":        {unix.SYS_FSOPEN, []any{"tmpfs", 0}, unix.EPERM},
	}
	for name, family := range map[string]int{
		"unix": unix.AF_UNIX, "inet": unix.AF_INET, "inet6": unix.AF_INET6, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET,
		"vsock": unix.AF_VSOCK, "alg": unix.AF_ALG, "xdp": unix.AF_XDP,
	} {
		attempts[name] = attempt{unix.SYS_SOCKET, []any{family, unix.SOCK_STREAM, 0}, unix.EPERM}
	}
	makeAttempts(t, d, attempts)
}

func TestACompromisedVMMGrowsNoFile(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	m, _ := l.run(t, s)
	pid := m.Handle().PID
	disk, memory := descriptorOf(t, pid, s.Disks[1].Path), descriptorOf(t, pid, s.Memory)
	const mem, disks, TiB = memMiB << 20, 16 << 20, 1 << 40 // the limit is that of the larger one
	d := debug(t, pid)
	attempts := map[string]attempt{
		"file in memory": {unix.SYS_MEMFD_CREATE, []any{"file", 0}, nil},
		"higher limit":   {unix.SYS_PRLIMIT64, []any{0, unix.RLIMIT_FSIZE, strings.Repeat("\xff", 16), 0}, unix.EPERM},
	}
	for name, f := range map[string]struct{ fd, size int }{"disk": {disk, disks}, "memory": {memory, mem}} {
		attempts[name+" by length"] = attempt{unix.SYS_FTRUNCATE, []any{f.fd, TiB}, unix.EFBIG}
		attempts[name+" by allocation"] = attempt{unix.SYS_FALLOCATE, []any{f.fd, 0, 0, TiB}, unix.EFBIG}
		attempts[name+" by allocation beyond its end"] = attempt{unix.SYS_FALLOCATE, []any{f.fd, unix.FALLOC_FL_KEEP_SIZE, 0, mem}, unix.EOPNOTSUPP}
		attempts[name+" by reservation"] = attempt{unix.SYS_IOCTL, []any{f.fd, 0x40305828, reservation(mem)}, unix.EPERM}
		attempts[name+" by insertion"] = attempt{unix.SYS_FALLOCATE, []any{f.fd, unix.FALLOC_FL_INSERT_RANGE, 0, 1 << 20}, unix.EOPNOTSUPP}
		attempts[name+" by writing"] = attempt{unix.SYS_PWRITE64, []any{f.fd, "x", 1, TiB}, unix.EFBIG}
		attempts[name+" beyond the limit"] = attempt{unix.SYS_PWRITE64, []any{f.fd, "x", 1, mem}, unix.EFBIG}
		attempts[name+" within its length"] = attempt{unix.SYS_PWRITE64, []any{f.fd, "x", 1, f.size - 1}, nil}
	}
	makeAttempts(t, d, attempts)
	for path, size := range map[string]int64{s.Disks[1].Path: disks, s.Memory: mem} {
		if st, err := os.Stat(path); err != nil || st.Size() != size {
			t.Errorf("%s has %d bytes, %v; want %d", path, st.Size(), err, size)
		}
	}
}

// reservation is the argument of FS_IOC_RESVSP, which reserves so many bytes of a file.
func reservation(bytes uint64) string {
	request := make([]byte, 48)
	binary.NativeEndian.PutUint64(request[16:], bytes)
	return string(request)
}

// The image of a machine's root is a file that all machines have open.
func TestACompromisedVMMKeepsNoOtherFromItsImage(t *testing.T) {
	l := newLab(t)
	s, other := l.spec(t), l.spec(t)
	other.Disks[0].Path = s.Disks[0].Path
	m, _ := l.run(t, s)
	pid := m.Handle().PID
	image := descriptorOf(t, pid, s.Disks[0].Path)
	makeAttempts(t, debug(t, pid), map[string]attempt{
		"lock all of it": {unix.SYS_FCNTL, []any{image, unix.F_OFD_SETLK, strings.Repeat("\x00", 32)}, nil}, // F_RDLCK, to its end
		"write":          {unix.SYS_PWRITE64, []any{image, "x", 1, 0}, unix.EBADF},
		"open to write":  {unix.SYS_OPENAT, []any{here, fdPath(image), unix.O_WRONLY}, unix.EACCES},
	})
	_, c := l.run(t, other)
	c.Expect("guest ready")
}

// The bridge learns no address from a machine's frames, but it would from its TAP.
func TestACompromisedVMMChangesNoTAP(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	tap, _ := newTAP(t, "tap0")
	s.NIC = &vmm.NIC{MAC: net.HardwareAddr{0x02, 0xfc, 0, 0, 0, 8}, TAP: tap}
	m, _ := l.run(t, s)
	pid := m.Handle().PID
	fd := descriptorOf(t, pid, "/dev/net/tun")
	name := "tap0" + strings.Repeat("\x00", 12)
	makeAttempts(t, debug(t, pid), map[string]attempt{
		"control":        {unix.SYS_IOCTL, []any{fd, unix.TUNGETIFF, strings.Repeat("\x00", 40)}, nil},
		"keep":           {unix.SYS_IOCTL, []any{fd, unix.TUNSETPERSIST, 1}, unix.EPERM},
		"give to a user": {unix.SYS_IOCTL, []any{fd, unix.TUNSETOWNER, s.UID}, unix.EPERM},
		"set its MAC":    {unix.SYS_IOCTL, []any{fd, unix.SIOCSIFHWADDR, name + "\x01\x00\x02\xfc\x00\x00\x00\x09" + strings.Repeat("\x00", 16)}, unix.EPERM},
	})
}

// descriptorOf returns the number under which a process has a file open.
func descriptorOf(t *testing.T, pid int, path string) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		var number int
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(link), &number); err != nil {
			t.Fatal(err)
		}
		return number
	}
	t.Fatalf("process %d does not have %s open", pid, path)
	return 0
}

// A call that the filters do not allow ends the whole process, not only its thread:
// a machine without its main thread would hang, with no exit reported.
func TestAForbiddenCallEndsTheVMM(t *testing.T) {
	l := newLab(t)
	for name, c := range map[string]struct {
		instruction string
		number      uint64
		args        []any
	}{
		"program":         {syscall64, unix.SYS_EXECVE, []any{"/usr/bin/env", 0, 0}},
		"program by file": {syscall64, unix.SYS_EXECVEAT, []any{here, "/usr/bin/env", 0, 0, 0}},
		"process":         {syscall64, unix.SYS_FORK, nil},
		"user namespace":  {syscall64, unix.SYS_UNSHARE, []any{unix.CLONE_NEWUSER}},
		"clone with one":  {syscall64, unix.SYS_CLONE, []any{unix.CLONE_NEWUSER | int(unix.SIGCHLD), 0, 0, 0, 0}},
		"namespace":       {syscall64, unix.SYS_SETNS, []any{3, 0}},
		"user":            {syscall64, unix.SYS_SETUID, []any{0}},
		"x32":             {syscall64, 0x40000000 | unix.SYS_GETPID, nil},
		"32 bits":         {syscall32, 20, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := l.run(t, l.spec(t))
			d := debug(t, m.Handle().PID)
			if got, err := d.call(c.instruction, c.number, c.args...); !errors.Is(err, errEnded) {
				t.Fatalf("the answer is %d, %v", got, err)
			}
			<-m.Exited()
			if exit := m.Exit(); exit.Cause != vmm.ExitCrashed || !strings.Contains(exit.Detail, "signal 31") { // SIGSYS
				t.Errorf("it has ended with %+v", exit)
			}
		})
	}
}
