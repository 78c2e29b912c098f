//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

// commandTimeout bounds a request to the API.
const commandTimeout = 10 * time.Second

// machine is one Firecracker process with its API.
type machine struct {
	*process.Process
	version atomic.Pointer[version] // nil until checkIdentity or identify has compared it
	hostCPU string
	api     *api
	stderr  *jail.Output
	stdout  *os.File // the read end of the console, so that the pipe buffers output while no connection reads it
	tail    tail     // of the console

	counters *counters
	saving   sync.Mutex // held while the machine is saved

	mu      sync.Mutex
	saved   bool // since the guest was paused: it considers all its vsock streams ended
	pressed bool // the power button was
	halted  bool // the guest has halted, so that watchHalt kills the process
}

// newMachine opens the pipes of a process, which are in h.Dir. It owns proc, also on
// error.
func (d *Driver) newMachine(h vmm.Handle, root string, proc *jail.Proc) (*machine, error) {
	m := &machine{Process: process.New("Firecracker", h, proc, d.log), hostCPU: d.cpu, api: newAPI(root)}
	if err := m.openPipes(h.Dir); err != nil {
		return nil, errors.Join(err, m.closePipes(), proc.Close())
	}
	m.Watch(process.Hooks{
		Drain:   m.drain,
		Cleanup: func() error { return errors.Join(removeTAP(h.Dir), cleanRunDir(h.Dir)) },
		Cause:   m.cause,
		Release: m.closePipes,
	})
	m.Go(m.watchHalt)
	return m, nil
}

// openPipes opens the process's pipes.
func (m *machine) openPipes(dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, vmm.LogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the VMM's log: %w", err)
	}
	st, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	pipe, err := openPipe(filepath.Join(dir, logPipe+".pipe"))
	if err != nil {
		return errors.Join(err, file.Close())
	}
	m.stderr = jail.CopyOutput(pipe, file, st.Size())
	if m.counters, err = newCounters(dir); err != nil {
		return err
	}
	m.stdout, err = openPipe(filepath.Join(dir, stdoutPipe))
	return err
}

// closePipes closes what openPipes has opened.
func (m *machine) closePipes() error {
	if m.stderr != nil {
		m.stderr.Close()
	}
	if m.counters != nil {
		m.counters.close()
	}
	if m.stdout != nil {
		return m.stdout.Close()
	}
	return nil
}

// drainTimeout bounds the reading of an ended process's pipes, in case another process
// has them open.
const drainTimeout = time.Second

// drain reads the rest of the process's log and console. If there is a connection to
// the console, that reads first.
func (m *machine) drain() (lastLine string) {
	m.stderr.SetTimeout(drainTimeout)
	lastLine = m.stderr.LastLine()
	if c, ok := m.Conn(vmm.ChannelConsole).(*consoleConn); ok {
		select {
		case <-c.ended:
		case <-m.Closed():
		case <-time.After(drainTimeout):
		}
	}
	_ = m.stdout.SetReadDeadline(time.Now().Add(drainTimeout))
	buf := make([]byte, 4096)
	for {
		n, err := m.stdout.Read(buf)
		m.tail.add(buf[:n])
		if err != nil {
			return lastLine
		}
	}
}

// cause sets the cause of the exit. Firecracker exits with 0 when the guest asks for a
// reset.
func (m *machine) cause(exit vmm.Exit, st jail.Status, killed bool) vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, line := endingOf(m.tail.String())
	orderly := st.Signal == 0 && st.Code == 0 // true also for an unknown status
	switch {
	case m.halted:
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case killed && (st.Signal != 0 || !st.Known):
		exit.Cause, exit.Detail = vmm.ExitKilled, ""
	case !orderly:
		exit.Cause = vmm.ExitCrashed
	case end == endPanic:
		exit.Cause, exit.Detail = vmm.ExitPanic, line
	case end == endPowerOff, m.pressed && st.Known:
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case end == endReset:
		exit.Cause, exit.Detail = vmm.ExitReset, ""
	case st.Known:
		exit.Cause, exit.Detail = vmm.ExitReset, "the guest printed no reason"
	default:
		exit.Cause = vmm.ExitUnknown
	}
	return exit
}

// command makes one request, bounded by commandTimeout.
func (m *machine) command(ctx context.Context, do func(context.Context) error) error {
	select {
	case <-m.Exited():
		return process.Gone(m.Handle().ID)
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := do(ctx); err != nil {
		return m.explain(err)
	}
	return nil
}

// explain returns the error of a failed request. Unless Firecracker refused it, the
// error says whether the machine has ended.
func (m *machine) explain(err error) error {
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	return m.Explain(err)
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	return m.command(ctx, func(ctx context.Context) error { return m.api.setState(ctx, "Paused") })
}

// Resume implements vmm.Machine. Firecracker's save reports to the guest that all its
// vsock streams have ended, but the guest does not reset them. So Resume closes the
// connection to the agent, once the guest can accept a new one.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.command(ctx, func(ctx context.Context) error { return m.api.setState(ctx, "Resumed") }); err != nil {
		return err
	}
	m.mu.Lock()
	wasSaved := m.saved
	m.saved = false
	m.mu.Unlock()
	if wasSaved {
		return m.CloseConn(vmm.ChannelAgent)
	}
	return nil
}

// Paused implements vmm.Machine.
func (m *machine) Paused(ctx context.Context) (is bool, err error) {
	err = m.command(ctx, func(ctx context.Context) error {
		i, err := m.api.instance(ctx)
		is = i.State == statePaused
		return err
	})
	return is, err
}

// Health implements vmm.Reporter. Firecracker reports nothing by itself, and does not
// halt a guest whose disk fails: the guest gets the error.
func (m *machine) Health(ctx context.Context) (vmm.Health, error) {
	if m.version.Load() == nil { // it did not answer Adopt
		if err := m.checkIdentity(ctx); err != nil {
			return vmm.Health{}, err
		}
	}
	i, err := m.api.instance(ctx)
	if err != nil {
		return vmm.Health{}, m.explain(err)
	}
	health := vmm.Health{DiskErrors: m.counters.diskErrors()}
	if i.State == statePaused || i.State == stateNew {
		health.Halt = vmm.HaltPaused
	}
	return health, nil
}

// PowerButton implements vmm.Machine. It presses Ctrl+Alt+Del, on which Linux
// restarts; since a reset ends the process, that counts as a power-off.
func (m *machine) PowerButton(ctx context.Context) error {
	m.mu.Lock()
	m.pressed = true
	m.mu.Unlock()
	return m.command(ctx, func(ctx context.Context) error { return m.api.action(ctx, "SendCtrlAltDel") })
}

// Stats implements vmm.Machine.
func (m *machine) Stats(ctx context.Context) (vmm.Stats, error) {
	var sum counts
	var memory vmm.GuestMemory
	err := m.command(ctx, func(ctx context.Context) error {
		var err error
		if sum, err = m.counters.afterFlush(ctx, func() error { return m.api.action(ctx, "FlushMetrics") }); err != nil {
			return err
		}
		if sum.MemoryReports > sum.MemoryFailures {
			memory, err = m.api.guestMemory(ctx)
		}
		return err
	})
	if err != nil {
		return vmm.Stats{}, err
	}
	stats, err := m.Usage()
	stats.Block, stats.GuestMemory = sum.BlockCounters, memory
	return stats, err
}
