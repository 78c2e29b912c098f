//go:build linux && amd64

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// commandLimit bounds a control command whose caller does not.
const commandLimit = 10 * time.Second

// machine is the daemon's hold on one QEMU process.
type machine struct {
	handle  vmm.Handle
	hostCPU string
	proc    *jail.Proc
	said    *jail.Words
	log     *slog.Logger
	work    sync.WaitGroup
	exited  chan struct{}
	closed  chan struct{}
	exit    vmm.Exit // written before exited is closed
	last    string   // QEMU's last words; written before exited is closed

	link chan *qmp // holds the one control connection, nil until it is made

	saving sync.Mutex  // held while the machine is saved
	moved  chan string // how a loading ended, as QEMU tells it; capacity 1

	mu      sync.Mutex
	conns   map[vmm.Channel]net.Conn
	console net.Conn // connected before the guest ran, not yet asked for
	reason  string   // of the last SHUTDOWN event
	killed  bool
	hungUp  bool // no connection is made any more

	closing  sync.Once
	closeErr error
}

func (d *Driver) newMachine(h vmm.Handle, proc *jail.Proc, said *jail.Words) *machine {
	m := &machine{
		handle: h, hostCPU: d.cpu, proc: proc, said: said, log: d.log,
		exited: make(chan struct{}), closed: make(chan struct{}),
		link: make(chan *qmp, 1), moved: make(chan string, 1), conns: map[vmm.Channel]net.Conn{},
	}
	m.link <- nil
	m.work.Go(m.watch)
	return m
}

// watch waits for the process's end, and then tells what it was.
func (m *machine) watch() {
	select {
	case <-m.closed:
		return
	case <-m.proc.Exited():
	}
	connected := m.drainLink()
	m.last = m.said.AtEnd()
	m.hangUp()
	if err := removeSockets(m.handle.Dir); err != nil {
		m.log.Warn("cannot remove the sockets of a machine that is gone", "vm", m.handle.ID, "err", err)
	}
	m.exit = m.judge(m.proc.Status(), connected)
	close(m.exited)
}

// drainLink waits until the last event of the control connection has been
// taken in, and reports whether there was a connection up to the end.
func (m *machine) drainLink() bool {
	q := <-m.link
	defer func() { m.link <- q }()
	if q == nil {
		return false
	}
	<-q.done
	q.close()
	return true
}

// judge tells the cause of the exit: what QEMU announced, else the status.
func (m *machine) judge(st jail.Status, connected bool) vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	exit := vmm.Exit{At: st.At, Detail: st.String()}
	if m.last != "" {
		exit.Detail += "; QEMU said: " + m.last
	}
	switch {
	case m.reason == "guest-shutdown":
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case m.reason == "guest-reset":
		exit.Cause, exit.Detail = vmm.ExitReset, ""
	case m.reason == "guest-panic":
		exit.Cause, exit.Detail = vmm.ExitPanic, ""
	case m.killed:
		exit.Cause, exit.Detail = vmm.ExitKilled, ""
	case m.reason != "": // a signal or a command that was not ours
		exit.Cause = vmm.ExitCrashed
		exit.Detail = "ended from outside (" + m.reason + "); " + exit.Detail
	case st.Signal != 0 || st.Code != 0 || connected: // it goes by itself only with a word
		exit.Cause = vmm.ExitCrashed
	default:
		exit.Cause = vmm.ExitUnknown
	}
	return exit
}

// observe takes in what QEMU tells unasked.
func (m *machine) observe(e qmpEvent) {
	switch e.Name {
	case "SHUTDOWN":
		m.observeShutdown(e.Data)
	case "MIGRATION":
		m.observeMigration(e.Data)
	default:
		m.log.Debug("qemu event", "vm", m.handle.ID, "event", e.Name)
	}
}

func (m *machine) observeShutdown(data json.RawMessage) {
	var why struct{ Reason string }
	_ = json.Unmarshal(data, &why) // no reason is told as one that is not known
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason = why.Reason
}

// command runs a control command without arguments.
func (m *machine) command(ctx context.Context, name string, out any) error {
	return m.run(ctx, qmpCommand{name: name}, out)
}

// run runs a control command over the one connection, which is made again if
// it was lost.
func (m *machine) run(ctx context.Context, command qmpCommand, out any) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	q, err := m.connect(ctx)
	if err == nil {
		err = q.do(ctx, command, out)
	}
	if err != nil {
		return m.explain(err)
	}
	return nil
}

// connect returns the control connection, after making it if there is none.
func (m *machine) connect(ctx context.Context) (q *qmp, err error) {
	select {
	case q = <-m.link:
	case <-m.exited:
		return nil, errGone(m.handle.ID)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { m.link <- q }()
	if m.isHungUp() {
		return nil, errGone(m.handle.ID)
	}
	if q != nil && !q.ended() {
		return q, nil
	}
	if q != nil {
		q.close()
	}
	fresh, err := dialQMP(ctx, m.handle.Socket, m.observe)
	if err != nil {
		return nil, err
	}
	q = fresh
	return q, nil
}

func (q *qmp) ended() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}

// explain waits a moment for the exit that most lost connections are.
func (m *machine) explain(err error) error {
	if !errors.Is(err, errQMPClosed) && !isNetError(err) {
		return err
	}
	select {
	case <-m.exited:
		return errGone(m.handle.ID)
	case <-time.After(time.Second):
		return errs.New(errs.Unavailable, "vmm_silent", "the VMM of %s does not answer", m.handle.ID).WithCause(err)
	}
}

func isNetError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

func errGone(id string) error {
	return errs.New(errs.NotFound, "machine_gone", "the machine of %s is gone", id)
}

// keepConsole holds a console connection for the first Dial.
func (m *machine) keepConsole(conn net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.console = conn
	m.conns[vmm.ChannelConsole] = conn
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, ch vmm.Channel) (net.Conn, error) {
	name, ok := channelSocket(ch)
	if !ok {
		return nil, errs.New(errs.Unsupported, "no_channel", "cannot dial channel %q: QEMU machines do not have it", ch)
	}
	if conn, err := m.prepareDial(ch); conn != nil || err != nil {
		return conn, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.handle.Dir, name))
	if err != nil {
		return nil, m.explain(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hungUp {
		_ = conn.Close()
		return nil, errGone(m.handle.ID)
	}
	if other := m.conns[ch]; other != nil {
		_ = other.Close() // of a Dial at the same time
	}
	m.conns[ch] = conn
	return conn, nil
}

// prepareDial ends the channel's connection, or hands out the one that waits.
func (m *machine) prepareDial(ch vmm.Channel) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hungUp {
		return nil, errGone(m.handle.ID)
	}
	if conn := m.console; ch == vmm.ChannelConsole && conn != nil {
		m.console = nil
		return conn, nil
	}
	if old := m.conns[ch]; old != nil {
		_ = old.Close()
		delete(m.conns, ch)
	}
	return nil, nil
}

// hangUp ends all channels and forbids new ones.
func (m *machine) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hungUp = true
	for _, c := range m.conns {
		_ = c.Close()
	}
}

func (m *machine) isHungUp() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hungUp
}

// Handle implements vmm.Machine.
func (m *machine) Handle() vmm.Handle { return m.handle }

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop", nil) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont", nil) }

// Paused implements vmm.Machine.
func (m *machine) Paused(ctx context.Context) (bool, error) {
	var status struct{ Running bool }
	err := m.command(ctx, "query-status", &status)
	return !status.Running, err
}

// PowerButton implements vmm.Machine.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.command(ctx, "system_powerdown", nil)
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

// lastWords returns QEMU's last line, once it has ended.
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
	q := <-m.link
	if q != nil {
		q.close()
	}
	m.link <- q
	m.work.Wait()
	m.said.Close()
	return m.proc.Close()
}
