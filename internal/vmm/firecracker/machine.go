//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// commandLimit bounds a request whose caller does not.
const commandLimit = 10 * time.Second

// machine is the daemon's hold on one Firecracker process.
type machine struct {
	handle  vmm.Handle
	version version
	hostCPU string
	api     *api
	proc    *jail.Proc
	said    *jail.Words
	blocks  *counters
	out     *os.File // the console's end to read, so that nothing is lost while nobody listens
	heard   tail
	log     *slog.Logger
	work    sync.WaitGroup
	exited  chan struct{}
	closed  chan struct{}
	exit    vmm.Exit // written before exited is closed
	last    string   // Firecracker's last words; written before exited is closed

	saving sync.Mutex // held while the machine is saved

	mu      sync.Mutex
	conns   map[vmm.Channel]net.Conn
	saved   bool // since it was paused: the guest takes all its streams for ended
	killed  bool
	pressed bool // the power button
	halted  bool // the guest stood still, and was ended
	hungUp  bool // no connection is made any more

	closing  sync.Once
	closeErr error
}

// newMachine takes hold of a process whose pipes lie in h.Dir. It owns proc
// from here on, also when it fails.
func (d *Driver) newMachine(h vmm.Handle, root string, proc *jail.Proc) (*machine, error) {
	m := &machine{
		handle: h, hostCPU: d.cpu, api: newAPI(root), proc: proc, log: d.log,
		exited: make(chan struct{}), closed: make(chan struct{}), conns: map[vmm.Channel]net.Conn{},
	}
	if err := m.listen(); err != nil {
		return nil, errors.Join(err, m.deafen(), proc.Close())
	}
	m.work.Go(m.watch)
	m.work.Go(m.watchHalt)
	return m, nil
}

// listen opens the process's pipes.
func (m *machine) listen() error {
	file, err := os.OpenFile(filepath.Join(m.handle.Dir, vmm.LogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the VMM's log: %w", err)
	}
	st, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	words, err := openPipe(filepath.Join(m.handle.Dir, logPipe+".pipe"))
	if err != nil {
		return errors.Join(err, file.Close())
	}
	m.said = jail.CopyWords(words, file, st.Size())
	if m.blocks, err = countBlocks(m.handle.Dir); err != nil {
		return err
	}
	m.out, err = openPipe(filepath.Join(m.handle.Dir, stdoutPipe))
	return err
}

// deafen closes what listen has opened.
func (m *machine) deafen() error {
	if m.said != nil {
		m.said.Close()
	}
	if m.blocks != nil {
		m.blocks.close()
	}
	if m.out != nil {
		return m.out.Close()
	}
	return nil
}

// watch waits for the process's end, and then tells what it was and removes
// what is left of it.
func (m *machine) watch() {
	select {
	case <-m.closed:
		return
	case <-m.proc.Exited():
	}
	m.said.EndWithin(outPatience)
	m.last = m.said.AtEnd()
	m.hearOut()
	m.hangUp()
	if err := errors.Join(endTAP(m.handle.Dir), clearOut(m.handle.Dir)); err != nil {
		m.log.Warn("cannot remove what is left of a machine", "vm", m.handle.ID, "err", err)
	}
	m.exit = m.judge(m.proc.Status())
	close(m.exited)
}

// outPatience bounds the wait for what a process that is gone has left in its
// pipes: nobody else should hold them.
const outPatience = time.Second

// hearOut takes in the last of the console: through the one who reads it, and
// where nobody does, without.
func (m *machine) hearOut() {
	if c := m.lastReader(); c != nil {
		select {
		case <-c.ended:
		case <-m.closed:
		case <-time.After(outPatience):
		}
	}
	_ = m.out.SetReadDeadline(time.Now().Add(outPatience))
	drain(m.out, &m.heard)
}

// judge tells the cause of the exit. Firecracker ends with 0 when the guest
// asks for a reset.
func (m *machine) judge(st jail.Status) vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, line := endingOf(m.heard.String())
	exit := vmm.Exit{At: st.At, Detail: st.String()}
	if m.last != "" {
		exit.Detail += "; Firecracker said: " + m.last
	}
	byItself := st.Signal == 0 && st.Code == 0 // known, or nobody knows
	switch {
	case m.halted:
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case m.killed && (st.Signal != 0 || !st.Known):
		exit.Cause, exit.Detail = vmm.ExitKilled, ""
	case !byItself:
		exit.Cause = vmm.ExitCrashed
	case end == endPanic:
		exit.Cause, exit.Detail = vmm.ExitPanic, line
	case end == endPowerOff, m.pressed && st.Known:
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case end == endReset:
		exit.Cause, exit.Detail = vmm.ExitReset, ""
	case st.Known:
		exit.Cause, exit.Detail = vmm.ExitReset, "the guest did not say why"
	default:
		exit.Cause = vmm.ExitUnknown
	}
	return exit
}

// command makes one request that must not take long.
func (m *machine) command(ctx context.Context, do func(context.Context) error) error {
	select {
	case <-m.exited:
		return errGone(m.handle.ID)
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if err := do(ctx); err != nil {
		return m.explain(err)
	}
	return nil
}

// explain waits a moment for the exit that most lost connections are.
func (m *machine) explain(err error) error {
	var no *refusal
	var told *errs.Error
	if errors.As(err, &no) {
		return err
	}
	select {
	case <-m.exited:
		return errGone(m.handle.ID)
	case <-time.After(time.Second):
	}
	if errors.As(err, &told) {
		return err
	}
	return errs.New(errs.Unavailable, "vmm_silent", "the VMM of %s does not answer", m.handle.ID).WithCause(err)
}

func errGone(id string) error {
	return errs.New(errs.NotFound, "machine_gone", "the machine of %s is gone", id)
}

// Handle implements vmm.Machine.
func (m *machine) Handle() vmm.Handle { return m.handle }

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	return m.command(ctx, func(ctx context.Context) error { return m.api.setState(ctx, "Paused") })
}

// Resume implements vmm.Machine. A guest that was saved has been told that all
// streams to it have ended, and says so to nobody: so the agent's is ended here,
// once there is somebody again to open a new one to.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.command(ctx, func(ctx context.Context) error { return m.api.setState(ctx, "Resumed") }); err != nil {
		return err
	}
	m.mu.Lock()
	was := m.saved
	m.saved = false
	m.mu.Unlock()
	if was {
		return m.endChannel(vmm.ChannelAgent)
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

// PowerButton implements vmm.Machine. Linux takes Ctrl+Alt+Del as a wish for a
// restart; since a reset ends the process, it is a power-off to us.
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
		if sum, err = m.blocks.after(ctx, func() error { return m.api.action(ctx, "FlushMetrics") }); err != nil {
			return err
		}
		if sum.MemoryTold > sum.MemoryMissed {
			memory, err = m.api.guestMemory(ctx)
		}
		return err
	})
	if err != nil {
		return vmm.Stats{}, err
	}
	used, err := m.proc.Usage()
	if errors.Is(err, jail.ErrGone) {
		return vmm.Stats{}, errGone(m.handle.ID)
	}
	if err != nil {
		return vmm.Stats{}, err
	}
	return vmm.Stats{
		StartedAt: used.StartedAt, CPUTime: used.CPU, Resident: used.Resident, Block: sum.BlockCounters, GuestMemory: memory,
	}, nil
}

// Kill implements vmm.Machine.
func (m *machine) Kill(ctx context.Context) error {
	select {
	case <-m.exited:
		return nil
	default:
	}
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	if err := m.proc.Kill(ctx); err != nil {
		return fmt.Errorf("cannot kill the VMM of %s: %w", m.handle.ID, err)
	}
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Exited implements vmm.Machine.
func (m *machine) Exited() <-chan struct{} { return m.exited }

// Exit implements vmm.Machine.
func (m *machine) Exit() vmm.Exit { return m.exit }

// lastWords returns Firecracker's last line, once it has ended.
func (m *machine) lastWords() string {
	select {
	case <-m.exited:
		return m.last
	default:
		return ""
	}
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	m.closing.Do(func() { m.closeErr = m.letGo() })
	return m.closeErr
}

func (m *machine) letGo() error {
	m.hangUp()
	close(m.closed)
	m.work.Wait()
	return errors.Join(m.deafen(), m.proc.Close())
}
