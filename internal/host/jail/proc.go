//go:build linux

package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process has ended, or that its pid is another process's now.
var ErrGone = errors.New("the process is gone")

// Status says how a process ended.
type Status struct {
	Known   bool           // false for a process that was not our child
	Code    int            // exit code, when Signal is 0
	Signal  syscall.Signal // that ended it, or 0
	OverMem bool           // the kernel killed it for exceeding its cgroup's memory
	At      time.Time      // when this daemon noticed
}

// String describes the status for an operator.
func (s Status) String() string {
	switch {
	case !s.Known:
		return "ended while it was not a child of this daemon"
	case s.OverMem:
		return fmt.Sprintf("killed by signal %d (over its memory limit)", int(s.Signal))
	case s.Signal == syscall.SIGBUS:
		return fmt.Sprintf("killed by signal %d (the host had no memory left for the guest's)", int(s.Signal))
	case s.Signal != 0:
		return fmt.Sprintf("killed by signal %d", int(s.Signal))
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// Proc is one jailed process, alive or ended. Its methods may be called from
// several goroutines at once.
type Proc struct {
	identity Identity
	pidfd    *os.File
	group    *group
	note     string
	work     sync.WaitGroup
	exited   chan struct{}
	status   Status // written before exited is closed
}

// Open adopts a process, usually one that an earlier daemon started. Everything in
// id must match the live process. name is its Cgroup.Name below cgroups, or "".
//
// Errors: ErrGone.
func Open(id Identity, cgroups Cgroups, name string) (*Proc, error) {
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	// The pidfd pins the process: /proc describes it, or, if it has ended since,
	// another start time.
	if live, err := Identify(id.PID); err != nil || live != id {
		_ = unix.Close(pidfd)
		return nil, ErrGone
	}
	return adopted(id.PID, pidfd, cgroups.find(cgroupRoot, name))
}

// adopted makes a Proc and starts to watch the process. It owns pidfd.
func adopted(pid, pidfd int, g *group) (*Proc, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil { // so that Go polls it
		_ = unix.Close(pidfd)
		return nil, err
	}
	p := &Proc{pidfd: os.NewFile(uintptr(pidfd), "pidfd"), group: g, exited: make(chan struct{})}
	identity, err := Identify(pid)
	if err != nil {
		// It has ended already; watch collects its status.
		identity = Identity{PID: pid}
	}
	p.identity = identity
	p.work.Go(p.watch)
	return p, nil
}

// watch waits for the end of the process and reaps it if it is our child.
func (p *Proc) watch() {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return // closed already
	}
	err = conn.Read(func(fd uintptr) bool {
		if !readable(int(fd)) {
			return false
		}
		p.status = reap(int(fd), p.identity.PID)
		return true
	})
	if err != nil {
		return // Close
	}
	p.status.At = time.Now()
	p.status.OverMem = p.status.Signal == syscall.SIGKILL && p.group.wasOverMemory()
	p.group.remove()
	close(p.exited)
}

// readable reports whether the pidfd's process has ended.
func readable(pidfd int) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1
}

// reap collects the status of an ended child. The first wait keeps it a zombie, so
// that no other process can have its pid at the second.
func reap(pidfd, pid int) Status {
	if err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return Status{} // ECHILD: an earlier daemon's child
	}
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil || got != pid {
		return Status{}
	}
	if ws.Signaled() {
		return Status{Known: true, Signal: ws.Signal()}
	}
	return Status{Known: true, Code: ws.ExitStatus()}
}

// Identity identifies the process.
func (p *Proc) Identity() Identity { return p.identity }

// Note names the limits that could not be set, and why, or the cgroup that is used instead
// of the configured one; "" when all is as configured.
func (p *Proc) Note() string { return p.note }

// Exited is closed when the process has ended and its cgroup is removed. It stays
// open after Close.
func (p *Proc) Exited() <-chan struct{} { return p.exited }

// Status says how the process ended. Precondition: Exited is closed.
func (p *Proc) Status() Status { return p.status }

// Kill ends the process at once and returns when it has ended, or when ctx is done.
func (p *Proc) Kill(ctx context.Context) error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the process does not end: %w", ctx.Err())
	}
}

// signal sends a signal to the process, unless it has ended.
func (p *Proc) signal(sig unix.Signal) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("cannot send signal %d: %w", int(sig), err)
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// Close stops watching and lets the process live. It waits for the watcher.
func (p *Proc) Close() error {
	err := p.pidfd.Close()
	p.work.Wait()
	return err
}
