//go:build linux

// Package jail starts VMM processes with as little power as they need, watches
// them, and recognises them again after the daemon has restarted.
//
// A jailed process has its own user, no capabilities and no way to gain any
// (a program that makes a jail of its own keeps those it needs for that), its
// own IPC and UTS namespaces, one of the network unless it must open a TAP by
// name, no core dumps, few file descriptors, and, where cgroups can be written,
// limits of memory, CPU and tasks. Its end is noticed through a pidfd in Go's
// poller, without polling.
//
// It knows nothing of VMMs or guests: that is internal/vmm's. Start at
// [Start], [Open] and [Proc].
package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
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
	OpenFiles int      // limit of file descriptors, ≥ 16; 0 when the program itself sets one
	Cgroup    *Cgroup  // nil: no cgroup

	Capabilities []uintptr // that a program run as root keeps, because it makes a jail of its own; nil: none
	OwnPIDs      bool      // a PID namespace of its own, in which it is the first
	HostNetwork  bool      // the daemon's network namespace: it opens a TAP by name
}

// FirstFile is the descriptor that Process.Files[0] has in the process; the
// others follow it.
const FirstFile = 3

// Start starts the process in its jail. ctx is looked at before the start
// only. On error no process and no cgroup is left.
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
		return nil, fmt.Errorf("cannot start %s: %w", p.Path, child.err)
	}
	notes := []string{note}
	if child.unlimited != nil {
		notes = append(notes, fmt.Sprintf("the cgroup's limits do not hold: %v", child.unlimited))
	}
	if err := limitFiles(child.pid, p.OpenFiles); err != nil {
		notes = append(notes, fmt.Sprintf("no limit of open files: %v", err))
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

// spawn forks and executes in a thread that has given up what the child must
// not have, and that is where the child is to be.
func spawn(p Process, g *group, null *os.File) (s spawned) {
	apart(func() {
		if s.err = renounce(p.Capabilities); s.err != nil {
			return
		}
		s.pidfd = -1
		s.fork(p, g, null)
	})
	if s.err == nil && s.pidfd < 0 {
		s.err = reapWithoutPidfd(s.pid)
	}
	return s
}

// apart calls do in a thread that ends afterwards, and returns then: none of what
// it gave up is missing in the daemon. The main thread never ends, and is kept
// from it.
func apart(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			do()
			return // locked, which ends the thread
		}
		apart(do)
		runtime.UnlockOSThread()
	}()
	<-done
}

// fork forks and executes where the group is. A process that cannot be born there
// runs without its limits, as it does where it has no group at all.
func (s *spawned) fork(p Process, g *group, null *os.File) {
	how, argv := attributes(p, null, &s.pidfd), append([]string{p.Path}, p.Args...)
	cradle, err := g.cradle()
	s.unlimited = errors.Join(g.enter(), err)
	if cradle != nil {
		defer func() { _ = cradle.Close() }()
		how.Sys.UseCgroupFD, how.Sys.CgroupFD = true, int(cradle.Fd())
		if s.pid, s.unlimited = syscall.ForkExec(p.Path, argv, how); s.unlimited == nil {
			return
		}
		how.Sys.UseCgroupFD = false
	}
	s.pid, s.err = syscall.ForkExec(p.Path, argv, how)
}

// renounce gives up, for this thread and its children: new privileges, all
// capabilities that a program could have but those to keep, and files that
// others may read.
func renounce(keep []uintptr) error {
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
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the umask is now this thread's own
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
	if !p.HostNetwork { // TAPs and sockets that are passed as open files need none
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

// reapWithoutPidfd ends a child of a kernel that gives no pidfd (before 5.2).
func reapWithoutPidfd(pid int) error {
	_ = unix.Kill(pid, unix.SIGKILL)
	_, _ = unix.Wait4(pid, nil, 0, nil)
	return fmt.Errorf("this kernel has no pidfd; Linux 5.10 or newer is needed")
}

// limitFiles bounds a process's descriptors. For a process of another user the
// daemon needs CAP_SYS_RESOURCE.
func limitFiles(pid, openFiles int) error {
	if openFiles == 0 {
		return nil
	}
	limit := unix.Rlimit{Cur: uint64(openFiles), Max: uint64(openFiles)}
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
}

// forbidCoreDumps forbids the daemon's own core dumps, which would hold its
// keys, and thereby those of the processes it starts, which would hold the
// guests' memory.
func forbidCoreDumps() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	limit.Cur = 0
	return unix.Setrlimit(unix.RLIMIT_CORE, &limit)
}
