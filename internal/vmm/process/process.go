//go:build linux

// Package process is the part of a machine that all drivers share: the VMM
// process, its exit, and the connections to the guest's channels.
//
// It knows neither the VMM nor its control protocol: a driver's machine embeds a
// [Process] and adds them. Start at [Process.Watch].
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
)

// discardTimeout bounds the killing of a machine whose start failed.
const discardTimeout = 30 * time.Second

// Hooks are the driver's steps after the exit of a process, and at Close. All but
// Cause may block for a short time; none may call Close.
type Hooks struct {
	// Drain is called once the process has exited. It reads the rest of the process's
	// pipes and sockets, and returns the last line of its stderr.
	Drain func() (lastLine string)

	// Cleanup is called next, with all channels closed. It removes the machine's
	// sockets, TAP and other files from the host.
	Cleanup func() error

	// Cause is called last. It returns exit with the cause of the exit. exit.At is
	// set, and exit.Detail has the process's status and last line; killed says that
	// Kill was called.
	Cause func(exit vmm.Exit, status jail.Status, killed bool) vmm.Exit

	// Release is called once, by Close, after the other hooks have returned or when
	// the process still runs. It closes the driver's files and connections.
	Release func() error
}

// Process is one VMM process as this daemon uses it. It implements
// vmm.Process. Its methods may be called from several goroutines at once.
type Process struct {
	Proc *jail.Proc
	Log  *slog.Logger

	program  string // for errors: QEMU, Firecracker
	hooks    Hooks
	work     sync.WaitGroup
	exited   chan struct{}
	closed   chan struct{}
	changed  chan struct{} // see HealthChanged; capacity 1
	exit     vmm.Exit      // written before exited is closed
	lastLine string        // of stderr; written before exited is closed

	mu     sync.Mutex
	handle vmm.Handle
	conns  map[vmm.Channel]net.Conn
	killed bool

	channelsClosed bool // all of them, for good

	closing  sync.Once
	closeErr error
}

// New returns the Process of a machine; it owns proc. program is the name of the
// VMM in errors. Watch must be called before any other method but SetHandle.
func New(program string, h vmm.Handle, proc *jail.Proc, log *slog.Logger) *Process {
	return &Process{
		Proc: proc, Log: log, program: program, handle: h,
		exited: make(chan struct{}), closed: make(chan struct{}), changed: make(chan struct{}, 1), conns: map[vmm.Channel]net.Conn{},
	}
}

// Open returns the live process of a machine that an earlier daemon started.
// Errors: errs.NotFound when it has ended, or when h describes another process.
func Open(h vmm.Handle, cgroups jail.Cgroups) (*jail.Proc, error) {
	proc, err := jail.Open(jail.Identity{PID: h.PID, StartTime: h.StartTime, BootID: h.BootID, Exe: h.Exe}, cgroups, h.ID)
	if errors.Is(err, jail.ErrGone) {
		return nil, Gone(h.ID)
	}
	return proc, err
}

// Gone returns the error of every method of a machine that has ended.
func Gone(id string) error {
	return errs.New(errs.NotFound, "machine_gone", "the machine of %s is gone", id)
}

// Watch starts to wait for the exit of the process, and calls hooks after it.
func (p *Process) Watch(hooks Hooks) {
	p.hooks = hooks
	p.work.Go(p.watch)
}

func (p *Process) watch() {
	select {
	case <-p.closed:
		return
	case <-p.Proc.Exited():
	}
	p.lastLine = p.hooks.Drain()
	p.closeChannels()
	if err := p.hooks.Cleanup(); err != nil {
		p.Log.Warn("cannot clean up after a machine", logkey.VM, p.Handle().ID, logkey.Error, err)
	}
	status := p.Proc.Status()
	exit := vmm.Exit{At: status.At, Detail: status.String()}
	if p.lastLine != "" {
		exit.Detail += "; " + p.program + " printed: " + p.lastLine
	}
	p.mu.Lock()
	killed := p.killed
	p.mu.Unlock()
	p.exit = p.hooks.Cause(exit, status, killed)
	close(p.exited)
}

// Go runs f in a goroutine that Close waits for. f must return when Exited or
// Closed is closed.
func (p *Process) Go(f func()) { p.work.Go(f) }

// Handle implements vmm.Process.
func (p *Process) Handle() vmm.Handle {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handle
}

// SetHandle changes the handle of a machine that is being started or adopted.
func (p *Process) SetHandle(h vmm.Handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = h
}

// Kill implements vmm.Process.
func (p *Process) Kill(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	default:
	}
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	if err := p.Proc.Kill(ctx); err != nil {
		return fmt.Errorf("cannot kill the VMM of %s: %w", p.Handle().ID, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Exited implements vmm.Process.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Exit implements vmm.Process.
func (p *Process) Exit() vmm.Exit { return p.exit }

// HealthChanged implements vmm.Reporter.
func (p *Process) HealthChanged() <-chan struct{} { return p.changed }

// ReportHealth says that vmm.Reporter.Health may have changed. It never blocks.
func (p *Process) ReportHealth() {
	select {
	case p.changed <- struct{}{}:
	default: // nothing has asked since the report before
	}
}

// Closed is closed by Close.
func (p *Process) Closed() <-chan struct{} { return p.closed }

// Close implements vmm.Process.
func (p *Process) Close() error {
	p.closing.Do(func() {
		p.closeChannels()
		close(p.closed)
		p.work.Wait()
		p.closeErr = errors.Join(p.hooks.Release(), p.Proc.Close())
	})
	return p.closeErr
}

// Discard kills and closes a machine whose start failed because of cause, and
// returns the error of the start: errs.Internal with code vmm_start_failed.
func (p *Process) Discard(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), discardTimeout)
	defer cancel()
	err := errors.Join(cause, p.Kill(ctx), p.Close())
	select {
	case <-p.exited:
		if p.lastLine != "" {
			err = fmt.Errorf("%w; %s printed: %s", err, p.program, p.lastLine)
		}
	default: // Kill failed
	}
	return errs.New(errs.Internal, "vmm_start_failed", "%s did not start the VM", p.program).WithCause(err)
}

// AdoptTimeout bounds the wait for a VMM's first answer to a daemon that adopts it.
const AdoptTimeout = 3 * time.Second

// exitGrace is how long a VMM whose connection was lost may take to exit.
const exitGrace = time.Second

// Explain returns the error of a request to the VMM that failed with err. A lost
// connection usually means that the process is about to exit, so Explain waits for
// that for up to exitGrace. Errors: errs.NotFound after the exit; else err, if it is
// for users already, or says that this daemon has no files or memory left; else
// errs.Unavailable with code vmm_silent.
func (p *Process) Explain(err error) error {
	select {
	case <-p.exited:
		return Gone(p.Handle().ID)
	case <-time.After(exitGrace):
	}
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return err
	}
	lacks := func(errno unix.Errno) bool { return errors.Is(err, errno) }
	if slices.ContainsFunc([]unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS}, lacks) {
		return err // the VMM was not asked
	}
	return errs.New(errs.Unavailable, "vmm_silent", "the VMM of %s does not answer", p.Handle().ID).WithCause(err)
}

// Usage returns what the process has used so far, without Block and
// GuestMemory. Errors: errs.NotFound.
func (p *Process) Usage() (vmm.Stats, error) {
	used, err := p.Proc.Usage()
	if errors.Is(err, jail.ErrGone) {
		return vmm.Stats{}, Gone(p.Handle().ID)
	}
	if err != nil {
		return vmm.Stats{}, err
	}
	return vmm.Stats{StartedAt: used.StartedAt, CPUTime: used.CPU, Resident: used.Resident}, nil
}
