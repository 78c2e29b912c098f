package proc

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// process is one process, from its start until it is removed and its last reader has
// closed. The table's mutex guards changed and the fields below it.
type process struct {
	table      *Table
	spec       wire.ProcessSpec // for descriptions
	background bool             // it began without a reader
	pid        int              // leader of its session and process group; 0 if it never ran
	begun      int64            // as from now
	in         *input           // nil if stdin is empty
	terminal   *os.File         // nil if it has pipes

	changed  *sync.Cond
	number   int64 // counts the table's starts
	out      output
	readers  map[*reader]struct{}
	streams  []*os.File // the agent's ends of its output
	draining int        // number of streams whose output has not ended
	timer    *time.Timer
	timedOut bool
	exit     *wire.ProcessExit // nil while it runs
	removed  bool              // no longer in the table
}

// describe returns the process as the host sees it.
func (p *process) describe() wire.Process {
	return wire.Process{Spec: p.spec, PID: p.pid, StartedAt: p.begun, Exit: p.exit, Output: p.out.end}
}

// complete reports whether the process and its output have ended.
func (p *process) complete() bool { return p.exit != nil && p.draining == 0 }

// unreadable reports whether no reader can get the output any more.
func (p *process) unreadable() bool { return p.removed && len(p.readers) == 0 }

// run starts the goroutines of a started process. The caller holds the mutex.
func (p *process) run(l *launch, s *started) {
	t := p.table
	p.pid, p.terminal, p.streams, p.draining = s.pid, s.terminal, s.outputs, len(s.outputs)
	if s.stdin != nil {
		p.in = &input{lock: make(chan struct{}, 1), file: s.stdin, terminal: s.terminal != nil}
	}
	if l.spec.Timeout > 0 {
		p.timer = time.AfterFunc(l.spec.Timeout, p.timeOut)
	}
	for i, f := range s.outputs {
		t.work.Go(func() { p.pump(f, i == 1) })
	}
	t.work.Go(func() { p.await(s.pidfd) })
	t.log.Debug("process started", "id", p.spec.ID, logkey.PID, p.pid)
}

// neverRan ends the process with the message and exit code of a shell that cannot run a
// command, if err is a cannotRun. Otherwise it returns err. The caller holds the mutex.
func (p *process) neverRan(err error) error {
	var cannot *cannotRun
	if !errors.As(err, &cannot) {
		return err
	}
	text := cannot.Error()
	if p.spec.TTY != nil {
		text += "\r"
	}
	p.table.kept += p.out.append(p.spec.TTY == nil, []byte(text+"\n"))
	p.exit = &wire.ProcessExit{Code: cannot.code, At: now()}
	return nil
}

// signal signals the process group. The caller holds the mutex, and the process has not
// been reaped: no other process has its pid.
func (p *process) signal(s syscall.Signal) error { return unix.Kill(-p.pid, s) }

func (p *process) timeOut() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.exit == nil {
		p.timedOut = true
		_ = p.signal(unix.SIGKILL)
	}
}

// remove kills the process group, if it runs, and removes the process from the table.
// The caller holds the mutex.
func (p *process) remove() {
	if p.exit == nil {
		_ = p.signal(unix.SIGKILL)
	}
	p.removed = true
	delete(p.table.processes, p.spec.ID)
	p.free()
}

// free frees the output and files of a process whose output is unreadable. The caller
// holds the mutex.
func (p *process) free() {
	if !p.unreadable() {
		return
	}
	p.table.kept -= p.out.kept
	p.out.chunks, p.out.kept = nil, 0
	if p.exit != nil {
		for _, f := range p.streams {
			_ = f.Close()
		}
	}
}

// wake makes all goroutines that wait for a change check again.
func (p *process) wake() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	p.changed.Broadcast()
}

// await waits for the end of the process and reaps it. If pidfd is nil, the wait blocks
// a thread.
func (p *process) await(pidfd *os.File) {
	if pidfd == nil {
		for errors.Is(unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		p.reap()
		return
	}
	defer func() { _ = pidfd.Close() }()
	if raw, err := pidfd.SyscallConn(); err == nil {
		_ = raw.Read(func(uintptr) bool { return p.reap() })
	}
}

// reap reaps the process, and reports whether it has ended.
func (p *process) reap() bool {
	t := p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	var status unix.WaitStatus
	if pid, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil); pid == 0 || errors.Is(err, unix.EINTR) {
		return false
	}
	p.exit = &wire.ProcessExit{Code: status.ExitStatus(), TimedOut: p.timedOut, At: now()}
	if status.Signaled() {
		p.exit.Code, p.exit.Signal = 128+int(status.Signal()), signalName(status.Signal())
	}
	t.running--
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.in != nil && !p.in.terminal { // pump closes a terminal
		_ = p.in.file.Close() // interrupts a write
	}
	for _, f := range p.streams {
		_ = f.SetReadDeadline(time.Now()) // see pump
	}
	p.free()
	p.changed.Broadcast()
	t.prune()
	return true
}

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(s))
}
