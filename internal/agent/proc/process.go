package proc

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// process is one process, from its start until nobody wants to know of it any
// more. The table's lock guards what is below changed.
type process struct {
	table    *Table
	spec     wire.ProcessSpec // as it is told
	pid      int              // of the leader of its session and group; 0 when it never ran
	begun    int64
	in       *input   // nil: stdin is empty
	terminal *os.File // nil: pipes

	changed  *sync.Cond
	number   int64 // in the order of their starts
	out      output
	readers  map[*reader]struct{}
	streams  []*os.File // of its output, which are still read
	draining int        // of them, those from which output is still to come
	timer    *time.Timer
	timedOut bool
	exit     *wire.ProcessExit // nil while it runs
	removed  bool              // no longer in the table
}

func newProcess(t *Table, l *launch) *process {
	return &process{
		table: t, spec: l.told(), begun: now(), changed: sync.NewCond(&t.mu), readers: map[*reader]struct{}{},
	}
}

// tell describes the process to the host.
func (p *process) tell() wire.Process {
	return wire.Process{Spec: p.spec, PID: p.pid, StartedAt: p.begun, Exit: p.exit, Output: p.out.end}
}

// complete reports whether the process has ended and no output is to come.
func (p *process) complete() bool { return p.exit != nil && p.draining == 0 }

// forgotten reports whether nobody can read the output any more.
func (p *process) forgotten() bool { return p.removed && len(p.readers) == 0 }

// run takes over what was started. The lock is held.
func (p *process) run(l *launch, s *started) {
	t := p.table
	p.pid, p.terminal, p.streams, p.draining = s.pid, s.terminal, s.outputs, len(s.outputs)
	if s.stdin != nil {
		p.in = newInput(s.stdin, s.terminal != nil)
	}
	if l.spec.Timeout > 0 {
		p.timer = time.AfterFunc(l.spec.Timeout, p.timeOut)
	}
	for i, f := range s.outputs {
		t.work.Go(func() { p.pump(f, i == 1) })
	}
	t.work.Go(func() { p.await(s.pidfd) })
	t.log.Debug("process started", "id", p.spec.ID, "pid", p.pid)
}

// neverRan makes the process one that ended at once, as a shell tells of a
// command that it cannot run. The error is for what is not the command's fault.
// The lock is held.
func (p *process) neverRan(err error) error {
	var fault *cannotRun
	if !errors.As(err, &fault) {
		return err
	}
	text := fault.Error()
	if p.spec.TTY != nil {
		text += "\r"
	}
	p.table.kept += p.out.append(p.spec.TTY == nil, []byte(text+"\n"))
	p.exit = &wire.ProcessExit{Code: fault.code, At: now()}
	return nil
}

// signal signals the process group. The lock is held, and the process has not
// ended: its number cannot be another's.
func (p *process) signal(s syscall.Signal) error { return unix.Kill(-p.pid, s) }

func (p *process) timeOut() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.exit == nil {
		p.timedOut = true
		_ = p.signal(unix.SIGKILL)
	}
}

// remove kills the process group, if it lives, and takes the process out of
// the table. The lock is held.
func (p *process) remove() {
	if p.exit == nil {
		_ = p.signal(unix.SIGKILL)
	}
	p.removed = true
	delete(p.table.processes, p.spec.ID)
	p.settle()
}

// settle lets go of what a process that nobody can ask for any more holds. The
// lock is held.
func (p *process) settle() {
	if !p.forgotten() {
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

// wake lets all who wait for the process look again.
func (p *process) wake() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	p.changed.Broadcast()
}

// await waits for the end of the process. pidfd is nil where the kernel has
// none: then it takes a thread.
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

// reap collects the process, and reports whether it has ended.
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
	if p.in != nil {
		p.in.processEnded()
	}
	for _, f := range p.streams {
		_ = f.SetReadDeadline(time.Now()) // see pump
	}
	p.settle()
	p.changed.Broadcast()
	t.prune()
	return true
}

// parseSignal reads a name with or without SIG.
func parseSignal(name string) (syscall.Signal, error) {
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	signal := unix.SignalNum(name)
	if signal == 0 {
		return 0, wire.Refuse(wire.CodeSignal, "there is no signal %q", name)
	}
	return signal, nil
}

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(s))
}
