//go:build linux

// Package jail starts VMM processes with few privileges, watches them, and
// recognises them after a restart of the daemon.
//
// A jailed process has its own user, no capabilities, no way to gain any, its own IPC
// and UTS namespaces, its own network namespace unless it must open a TAP by name, no
// core dumps, few file descriptors, and, where cgroups can be written, limits of
// memory, CPU and tasks. Unless it makes a jail of its own (for which it keeps
// capabilities), it also has its own PID namespace, a limit of the size of files, a
// read-only root directory with its program ([Root]) and a filter of system calls.
// A pidfd in Go's poller reports its end.
//
// It knows nothing of VMMs or guests (internal/vmm). Start at [Start], [Open] and
// [Proc].
package jail

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// Process says what to start. Its files belong to the caller, who closes them
// after Start.
type Process struct {
	Path      string   // absolute
	Args      []string // without the program's own name
	Env       []string // complete; nothing is inherited
	Dir       string   // working directory; "" means /
	UID, GID  int      // both 0: keep the caller's user (tests only), still without capabilities
	Groups    []int    // supplementary groups, for a device that only a group may open
	Files     []*os.File
	Stdin     *os.File // nil: /dev/null
	Stdout    *os.File // nil: /dev/null
	Stderr    *os.File // nil: /dev/null
	OpenFiles int      // limit of file descriptors, ≥ 16; 0 when the program sets one
	FileSize  int64    // limit to which it can grow a file, in bytes; 0 when the program sets one
	Cgroup    *Cgroup  // nil: no cgroup
	Root      *Root    // nil: the host's, for a program that makes a root directory of its own
	Filtered  bool     // without the system calls that no VMM needs, and not for programs with child processes of their own

	Capabilities []uintptr // that a program run as root keeps to make a jail of its own; nil: none
	OwnPIDs      bool      // in a new PID namespace
	HostNetwork  bool      // in the daemon's network namespace, to open a TAP by name
}

// FirstFile is the descriptor of Process.Files[0] in the process; the others
// follow.
const FirstFile = 3

// isExhausted reports whether the host, or a cgroup, has no more processes or memory.
func isExhausted(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) }

// Start starts the process in its jail. It checks ctx before the start only. On
// error no process and no cgroup is left.
//
// Errors: errs.Exhausted with code processes_exhausted.
func Start(ctx context.Context, p Process) (*Proc, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := forbidCoreDumps(); err != nil {
		return nil, fmt.Errorf("cannot forbid core dumps: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	group, note := newGroup(p.Cgroup)
	child := spawn(p, group, null)
	if child.err != nil {
		group.remove()
		err := fmt.Errorf("cannot start %s: %w", p.Path, child.err)
		if isExhausted(child.err) {
			return nil, errs.New(errs.Exhausted, "processes_exhausted", "the host cannot run another process").
				WithHint("stop or delete a VM; or raise the limits of processes and memory of VMs' cgroup (see hatch doctor) and of the host").WithCause(err)
		}
		return nil, err
	}
	notes := []string{note}
	if child.unlimited != nil {
		notes = append(notes, fmt.Sprintf("the cgroup's limits do not apply: %v", child.unlimited))
	}
	proc, err := adopted(child.pid, child.pidfd, group)
	if err != nil {
		group.remove()
		return nil, err
	}
	proc.note = strings.Trim(strings.Join(notes, "; "), "; ")
	return proc, nil
}

// spawned is the outcome of a fork in a thread of its own.
type spawned struct {
	pid, pidfd int
	unlimited  error // why it is not in its cgroup
	err        error
}

// spawn forks and executes in a thread that has dropped the child's privileges, is in
// the child's cgroup and has its root directory.
func spawn(p Process, g *group, null *os.File) (s spawned) {
	s.pidfd = -1
	onThread(func() {
		if s.err = s.fork(p, g, null); s.err == nil {
			s.err = limit(s.pid, p)
		}
	})
	if s.err == nil && s.pidfd < 0 {
		s.err = errors.New("this kernel has no pidfd; Linux 5.10 or newer is needed")
	}
	if s.err != nil && s.pid > 0 {
		_ = unix.Kill(s.pid, unix.SIGKILL)
		_, _ = unix.Wait4(s.pid, nil, 0, nil)
		_ = unix.Close(s.pidfd)
	}
	return s
}

// onThread calls do in a thread and waits for its end, so that the daemon keeps
// what the thread drops. The main thread, which never ends, is not used.
func onThread(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			do()
			return // locked, which ends the thread
		}
		onThread(do)
		runtime.UnlockOSThread()
	}()
	<-done
}

// fork forks and executes in the group. A process that cannot start there runs
// without its limits.
func (s *spawned) fork(p Process, g *group, null *os.File) error {
	if err := closeOnExec(); err != nil {
		return err
	}
	dir, err := g.openUnified()
	s.unlimited = errors.Join(g.enter(), err)
	if dir != nil {
		defer func() { _ = dir.Close() }()
	}
	if err := confine(p); err != nil {
		return err
	}
	how, argv := attributes(p, null, &s.pidfd), append([]string{p.Path}, p.Args...)
	if dir != nil {
		how.Sys.UseCgroupFD, how.Sys.CgroupFD = true, int(dir.Fd())
		if s.pid, s.unlimited = syscall.ForkExec(p.Path, argv, how); s.unlimited == nil || isExhausted(s.unlimited) {
			return s.unlimited
		}
		how.Sys.UseCgroupFD = false
	}
	s.pid, err = syscall.ForkExec(p.Path, argv, how)
	return err
}

// confine takes from this thread and its children what the process must not have.
func confine(p Process) error {
	if p.Root != nil {
		if err := p.Root.enter(); err != nil {
			return err
		}
	}
	if err := dropPrivileges(p.Capabilities); err != nil {
		return err
	}
	if !p.Filtered {
		return nil
	}
	return filterCalls()
}

// limit sets limits of a process that was just started, for good: it may run without
// them until Start returns. The thread becomes the process's user: to limit another
// user's process takes CAP_SYS_RESOURCE, which hatchd may lack.
func limit(pid int, p Process) error {
	if p.UID != 0 || p.GID != 0 {
		gid, uid := uintptr(p.GID), uintptr(p.UID)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
			return fmt.Errorf("cannot become the process's group: %w", errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			return fmt.Errorf("cannot become the process's user: %w", errno)
		}
	}
	for resource, most := range map[int]int64{unix.RLIMIT_NOFILE: int64(p.OpenFiles), unix.RLIMIT_FSIZE: p.FileSize} {
		if most == 0 {
			continue
		}
		var old unix.Rlimit
		if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
			return fmt.Errorf("cannot read a limit of the process: %w", err)
		}
		lower := min(uint64(most), old.Max)
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: lower, Max: lower}, nil); err != nil {
			return fmt.Errorf("cannot limit the process: %w", err)
		}
	}
	return nil
}

// closeOnExec keeps the daemon's descriptors out of its children, also those that it
// has inherited itself or that a library has opened without the flag.
func closeOnExec() error {
	const afterStderr = 3
	err := unix.CloseRange(afterStderr, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd") // before Linux 5.11
	if err != nil {
		return fmt.Errorf("cannot list open descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= afterStderr {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// dropPrivileges drops, for this thread and its children: new privileges, all
// capabilities except those to keep, and files that other users may read.
func dropPrivileges(keep []uintptr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot forbid new privileges: %w", err)
	}
	if os.Geteuid() == 0 {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if slices.Contains(keep, c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
				return fmt.Errorf("cannot drop capability %d: %w", c, err)
			}
		}
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the umask is per process otherwise
		return fmt.Errorf("cannot unshare the umask: %w", err)
	}
	unix.Umask(0o077)
	return nil
}

func attributes(p Process, null *os.File, pidfd *int) *syscall.ProcAttr {
	files := []uintptr{orNull(p.Stdin, null).Fd(), orNull(p.Stdout, null).Fd(), orNull(p.Stderr, null).Fd()}
	for _, f := range p.Files {
		files = append(files, f.Fd())
	}
	sys := &syscall.SysProcAttr{
		Setsid:     true,
		PidFD:      pidfd,
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if !p.HostNetwork { // TAPs and sockets passed as open files work in any
		sys.Cloneflags |= unix.CLONE_NEWNET
	}
	if p.OwnPIDs {
		sys.Cloneflags |= unix.CLONE_NEWPID
	}
	if p.UID != 0 || p.GID != 0 {
		sys.Credential = &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.GID)}
		for _, g := range p.Groups {
			sys.Credential.Groups = append(sys.Credential.Groups, uint32(g))
		}
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	return &syscall.ProcAttr{Dir: dir, Env: p.Env, Files: files, Sys: sys}
}

func orNull(f, null *os.File) *os.File {
	if f == nil {
		return null
	}
	return f
}

// forbidCoreDumps forbids core dumps of the daemon, which would contain its keys,
// and of its children, which would contain guests' memory.
func forbidCoreDumps() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	limit.Cur = 0
	return unix.Setrlimit(unix.RLIMIT_CORE, &limit)
}
