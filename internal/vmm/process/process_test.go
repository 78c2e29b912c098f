//go:build linux

package process

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// timeout bounds every wait for an event. A test that waits this long fails.
const timeout = 30 * time.Second

// recorder is the hooks of a test: they note their calls and return what it sets.
type recorder struct {
	lastLine   string
	cleanupErr error
	drain      func() // called by Drain, if it is set

	mu     sync.Mutex
	calls  []string
	status jail.Status
	killed bool
}

func (r *recorder) note(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, name)
}

func (r *recorder) hooks() Hooks {
	return Hooks{
		Drain: func() string {
			r.note("drain")
			if r.drain != nil {
				r.drain()
			}
			return r.lastLine
		},
		Cleanup: func() error {
			r.note("cleanup")
			return r.cleanupErr
		},
		Cause: func(exit vmm.Exit, status jail.Status, killed bool) vmm.Exit {
			r.note("cause")
			r.status, r.killed = status, killed // read after the exit only
			exit.Cause = vmm.ExitCrashed
			return exit
		},
		Release: func() error {
			r.note("release")
			return nil
		},
	}
}

func (r *recorder) requireCalls(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.calls, want) {
		t.Errorf("the hooks were called in the order %v, want %v", r.calls, want)
	}
}

// startProgram starts a program that ends with the test at the latest, and returns
// its standard input and its handle.
func startProgram(t *testing.T, name string, args ...string) (io.WriteCloser, vmm.Handle) {
	t.Helper()
	cmd := exec.Command(name, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill() // fails if the test has reaped it
		_, _ = cmd.Process.Wait()
	})
	id, err := jail.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return stdin, vmm.Handle{ID: "vm_1", PID: id.PID, StartTime: id.StartTime, BootID: id.BootID, Exe: id.Exe}
}

// watch returns the Process of a handle, watched with the hooks of r and closed at
// the end of the test.
func watch(t *testing.T, h vmm.Handle, r *recorder) *Process {
	t.Helper()
	proc, err := Open(h, "")
	if err != nil {
		t.Fatal(err)
	}
	p := New("sleep", h, proc, slog.New(slog.DiscardHandler))
	p.Watch(r.hooks())
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// watchSleep watches a process that sleeps for longer than the test runs.
func watchSleep(t *testing.T, r *recorder) *Process {
	t.Helper()
	_, h := startProgram(t, "/bin/sleep", "600")
	return watch(t, h, r)
}

func awaitExit(t *testing.T, p *Process) vmm.Exit {
	t.Helper()
	select {
	case <-p.Exited():
		return p.Exit()
	case <-time.After(timeout):
		t.Fatal("Exited is not closed")
		return vmm.Exit{}
	}
}

func requireRunning(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Exited():
		t.Fatal("Exited is closed while the process runs")
	default:
	}
	if err := unix.Kill(p.Handle().PID, 0); err != nil {
		t.Fatalf("the process has ended: %v", err)
	}
}

func TestExitIsObserved(t *testing.T) {
	stdin, h := startProgram(t, "/bin/sh", "-c", "read line; exit 3")
	r := &recorder{lastLine: "no disk"}
	p := watch(t, h, r)
	requireRunning(t, p)
	before := time.Now()
	if _, err := io.WriteString(stdin, "end\n"); err != nil {
		t.Fatal(err)
	}
	exit := awaitExit(t, p)
	if exit.Cause != vmm.ExitCrashed || exit.Detail != "exit status 3; sleep printed: no disk" {
		t.Errorf("the exit is %+v", exit)
	}
	if exit.At.Before(before) || exit.At.After(time.Now()) {
		t.Errorf("the exit is at %v, want between %v and now", exit.At, before)
	}
	if !r.status.Known || r.status.Code != 3 || r.killed {
		t.Errorf("the status is %+v, killed: %v", r.status, r.killed)
	}
	r.requireCalls(t, "drain", "cleanup", "cause")
}

func TestDetailHasNoLineOfASilentProgram(t *testing.T) {
	stdin, h := startProgram(t, "/bin/sh", "-c", "read line")
	p := watch(t, h, &recorder{})
	_ = stdin.Close()
	if exit := awaitExit(t, p); exit.Detail != "exit status 1" {
		t.Errorf("the detail is %q", exit.Detail)
	}
}

func TestKillEndsTheProcess(t *testing.T) {
	r := &recorder{}
	p := watchSleep(t, r)
	requireRunning(t, p)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited():
	default:
		t.Fatal("Kill returned before Exited was closed")
	}
	if err := unix.Kill(p.Handle().PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a signal to the killed process: %v, want ESRCH", err)
	}
	if !r.killed || r.status.Signal != unix.SIGKILL {
		t.Errorf("the status is %+v, killed: %v", r.status, r.killed)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("a second kill: %v", err)
	}
	r.requireCalls(t, "drain", "cleanup", "cause")
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("close after the exit: %v", err)
		}
	}
	r.requireCalls(t, "drain", "cleanup", "cause", "release")
}

// Kill signals through a pidfd, so it cannot hit a process that has the pid of an
// ended one.
func TestKillHitsNoOtherProcess(t *testing.T) {
	p := watchSleep(t, &recorder{})
	other := watchSleep(t, &recorder{})
	h := p.Handle()
	h.PID = other.Handle().PID // as if the kernel had used the pid again
	p.SetHandle(h)
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireRunning(t, other)
}

// A kill waits for the hooks too, but not longer than its context.
func TestKillReturnsWithItsContext(t *testing.T) {
	draining, finish := make(chan struct{}), make(chan struct{})
	r := &recorder{drain: func() { close(draining); <-finish }}
	p := watchSleep(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	killed := make(chan error)
	go func() { killed <- p.Kill(ctx) }()
	select {
	case <-draining:
	case <-time.After(timeout):
		t.Fatal("Drain is not called")
	}
	cancel()
	if err := <-killed; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want context canceled", err)
	}
	close(finish)
	awaitExit(t, p)
}

func TestCloseLetsTheProcessRun(t *testing.T) {
	r := &recorder{}
	p := watchSleep(t, r)
	ended := false
	p.Go(func() {
		<-p.Closed()
		ended = true
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if !ended {
		t.Error("Close did not wait for the goroutine")
	}
	requireRunning(t, p)
	r.requireCalls(t, "release")

	// A later daemon adopts it.
	again := &recorder{}
	next := watch(t, p.Handle(), again)
	if err := next.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.requireCalls(t, "drain", "cleanup", "cause")
	r.requireCalls(t, "release")
}

func TestOpenRefusesAnotherProcess(t *testing.T) {
	_, h := startProgram(t, "/bin/sleep", "600")
	for name, change := range map[string]func(*vmm.Handle){
		"another start time": func(h *vmm.Handle) { h.StartTime++ },
		"another boot":       func(h *vmm.Handle) { h.BootID = "other" },
		"another program":    func(h *vmm.Handle) { h.Exe = "/bin/true" },
		"no process":         func(h *vmm.Handle) { h.PID = 1 << 22 },
	} {
		t.Run(name, func(t *testing.T) {
			changed := h
			change(&changed)
			if proc, err := Open(changed, ""); !errs.HasCode(err, "machine_gone") || proc != nil {
				t.Errorf("opened %v, %v; want machine_gone", proc, err)
			}
		})
	}
}

func TestFailedCleanupIsLogged(t *testing.T) {
	_, h := startProgram(t, "/bin/sleep", "600")
	proc, err := Open(h, "")
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	p := New("sleep", h, proc, slog.New(slog.NewTextHandler(&text, nil)))
	p.Watch((&recorder{cleanupErr: errors.New("the socket is busy")}).hooks())
	if err := errors.Join(p.Kill(t.Context()), p.Close()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cannot clean up after a machine", "vm_1", "the socket is busy"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the log is %q, want one with %q", text.String(), want)
		}
	}
}

func TestDiscardReportsWhyTheStartFailed(t *testing.T) {
	r := &recorder{lastLine: "bad kernel"}
	p := watchSleep(t, r)
	cause := errors.New("no answer")
	err := p.Discard(cause)
	if !errs.HasCode(err, "vmm_start_failed") || !errs.Is(err, errs.Internal) || !errors.Is(err, cause) {
		t.Errorf("the error is %v", err)
	}
	for _, want := range []string{"sleep did not start the VM", "sleep printed: bad kernel"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %q, want one with %q", err, want)
		}
	}
	awaitExit(t, p)
	r.requireCalls(t, "drain", "cleanup", "cause", "release")
}

func TestExplainSaysWhetherTheMachineIsGone(t *testing.T) {
	p := watchSleep(t, &recorder{})
	lost, forUsers := errors.New("connection reset"), errs.New(errs.Conflict, "busy", "the VMM is busy")
	if err := p.Explain(lost); !errs.HasCode(err, "vmm_silent") || !errs.Is(err, errs.Unavailable) || !errors.Is(err, lost) {
		t.Errorf("of a running process: %v, want vmm_silent", err)
	}
	if err := p.Explain(unix.EMFILE); !errors.Is(err, unix.EMFILE) || vmm.IsSilent(err) {
		t.Errorf("an error of the daemon's own became %v", err)
	}
	if err := p.Explain(forUsers); !errors.Is(err, forUsers) || errs.HasCode(err, "vmm_silent") {
		t.Errorf("an error for users becomes %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []error{lost, forUsers} {
		if err := p.Explain(cause); !errs.HasCode(err, "machine_gone") || !errs.Is(err, errs.NotFound) {
			t.Errorf("%v after the exit: %v, want machine_gone", cause, err)
		}
	}
}

func TestUsageIsOfTheLiveProcess(t *testing.T) {
	p := watchSleep(t, &recorder{})
	used, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(used.StartedAt); used.Resident <= 0 || age < -2*time.Second || age > timeout {
		t.Errorf("the usage is %+v", used)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Usage(); !errs.HasCode(err, "machine_gone") {
		t.Errorf("after the exit: %v, want machine_gone", err)
	}
}

// newConn returns a connection, and a function that reports whether it was closed.
func newConn(t *testing.T) (conn net.Conn, isClosed func() bool) {
	t.Helper()
	conn, other := net.Pipe()
	t.Cleanup(func() {
		_ = conn.Close()
		_ = other.Close()
	})
	return conn, func() bool {
		_ = other.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := other.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
}

func TestAChannelHasOneConnection(t *testing.T) {
	p := watchSleep(t, &recorder{})
	if got := p.Conn(vmm.ChannelAgent); got != nil {
		t.Errorf("the connection before the first is %v", got)
	}
	first, firstClosed := newConn(t)
	second, secondClosed := newConn(t)
	console, consoleClosed := newConn(t)
	for _, set := range []struct {
		ch   vmm.Channel
		conn net.Conn
	}{{vmm.ChannelAgent, first}, {vmm.ChannelConsole, console}, {vmm.ChannelAgent, second}} {
		if err := p.SetConn(set.ch, set.conn); err != nil {
			t.Fatal(err)
		}
	}
	if !firstClosed() || secondClosed() || consoleClosed() || p.Conn(vmm.ChannelAgent) != second {
		t.Errorf("closed: first %v, second %v, console %v", firstClosed(), secondClosed(), consoleClosed())
	}
	for range 2 { // the second time there is none
		if err := p.CloseConn(vmm.ChannelAgent); err != nil {
			t.Error(err)
		}
	}
	if !secondClosed() || consoleClosed() || p.Conn(vmm.ChannelAgent) != nil {
		t.Errorf("closed: second %v, console %v", secondClosed(), consoleClosed())
	}
}

func TestChannelsAreClosedWithTheMachine(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *Process) error{
		"the process is killed": func(t *testing.T, p *Process) error { return p.Kill(t.Context()) },
		"the machine is closed": func(_ *testing.T, p *Process) error { return p.Close() },
		"the process crashes":   func(t *testing.T, p *Process) error { return crash(t, p) },
	} {
		t.Run(name, func(t *testing.T) {
			p := watchSleep(t, &recorder{})
			conn, closed := newConn(t)
			if err := p.SetConn(vmm.ChannelAgent, conn); err != nil {
				t.Fatal(err)
			}
			if p.ChannelsClosed() {
				t.Error("the channels are closed while the process runs")
			}
			if err := end(t, p); err != nil {
				t.Fatal(err)
			}
			if !closed() || !p.ChannelsClosed() {
				t.Errorf("the connection is closed: %v, all channels: %v", closed(), p.ChannelsClosed())
			}
			late, lateClosed := newConn(t)
			if err := p.SetConn(vmm.ChannelAgent, late); !errs.HasCode(err, "machine_gone") || !lateClosed() {
				t.Errorf("a late connection: %v, closed: %v", err, lateClosed())
			}
			if err := p.CloseConn(vmm.ChannelAgent); !errs.HasCode(err, "machine_gone") {
				t.Errorf("closing a channel of a gone machine: %v", err)
			}
		})
	}
}

// crash ends the process without Kill.
func crash(t *testing.T, p *Process) error {
	t.Helper()
	if err := unix.Kill(p.Handle().PID, unix.SIGSEGV); err != nil {
		return err
	}
	awaitExit(t, p)
	return nil
}
