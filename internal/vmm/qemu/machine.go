//go:build linux && amd64

package qemu

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

// commandTimeout bounds one QMP command.
const commandTimeout = 10 * time.Second

// machine is one QEMU process with its control connection.
type machine struct {
	*process.Process
	hostCPU string
	stderr  *jail.Output

	control  chan *qmp   // has the one control connection, nil until it is made
	saving   sync.Mutex  // held while the machine is saved
	migrated chan string // the status in which a migration ended; capacity 1

	mu         sync.Mutex
	console    net.Conn // connected before the guest ran, for the first Dial
	reason     string   // of the last SHUTDOWN event
	diskErrors uint64   // that the guest was told
}

func (d *Driver) newMachine(h vmm.Handle, proc *jail.Proc, stderr *jail.Output) *machine {
	m := &machine{
		Process: process.New("QEMU", h, proc, d.log), hostCPU: d.cpu, stderr: stderr,
		control: make(chan *qmp, 1), migrated: make(chan string, 1),
	}
	m.control <- nil
	connected := false // to QMP, until the process exited
	m.Watch(process.Hooks{
		Drain: func() string {
			connected = m.drainControl()
			return m.stderr.LastLine()
		},
		Cleanup: func() error { return removeSockets(h.Dir) },
		Cause: func(exit vmm.Exit, status jail.Status, killed bool) vmm.Exit {
			return m.cause(exit, status, killed, connected)
		},
		Release: m.release,
	})
	return m
}

// drainControl waits until the last event of the control connection is handled, and
// reports whether there was a connection.
func (m *machine) drainControl() bool {
	q := <-m.control
	defer func() { m.control <- q }()
	if q == nil {
		return false
	}
	<-q.done
	q.close()
	return true
}

// cause sets the cause of the exit from the reason in QEMU's SHUTDOWN event, else
// from the status of the process.
func (m *machine) cause(exit vmm.Exit, status jail.Status, killed, connected bool) vmm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.reason == "guest-shutdown":
		exit.Cause, exit.Detail = vmm.ExitShutdown, ""
	case m.reason == "guest-reset":
		exit.Cause, exit.Detail = vmm.ExitReset, ""
	case m.reason == "guest-panic":
		exit.Cause, exit.Detail = vmm.ExitPanic, ""
	case killed:
		exit.Cause, exit.Detail = vmm.ExitKilled, ""
	case m.reason != "": // a signal or a command of another process
		exit.Cause = vmm.ExitCrashed
		exit.Detail = "ended by another process of the host (" + m.reason + "); " + exit.Detail
	case status.Signal != 0 || status.Code != 0 || connected: // without the event that QEMU sends before an orderly exit
		exit.Cause = vmm.ExitCrashed
	default:
		exit.Cause = vmm.ExitUnknown
	}
	return exit
}

// release closes the control connection and stops the copying of stderr.
func (m *machine) release() error {
	q := <-m.control
	if q != nil {
		q.close()
	}
	m.control <- q
	m.stderr.Close()
	return nil
}

// command runs a QMP command without arguments.
func (m *machine) command(ctx context.Context, name string, out any) error {
	return m.run(ctx, qmpCommand{name: name}, out)
}

// run runs a QMP command within commandTimeout.
func (m *machine) run(ctx context.Context, command qmpCommand, out any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return m.ask(ctx, command, out)
}

// ask runs a QMP command over the one connection, which it makes again if it was
// lost. Only ctx bounds the wait for the answer.
func (m *machine) ask(ctx context.Context, command qmpCommand, out any) error {
	q, err := m.connect(ctx)
	if err == nil {
		err = q.do(ctx, command, out)
	}
	if err != nil {
		return m.explain(err)
	}
	return nil
}

// connect returns the control connection, and makes it if there is none.
func (m *machine) connect(ctx context.Context) (*qmp, error) {
	var q *qmp
	select {
	case q = <-m.control:
	case <-m.Exited():
		return nil, process.Gone(m.Handle().ID)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { m.control <- q }()
	if m.ChannelsClosed() {
		return nil, process.Gone(m.Handle().ID)
	}
	if q != nil {
		select {
		case <-q.done:
			q.close()
		default:
			return q, nil
		}
	}
	fresh, err := dialQMP(ctx, m.Handle().Socket, m.handleEvent)
	if err != nil {
		return nil, err // q stays: how the one before ended tells why QEMU did
	}
	q = fresh
	m.learnVersion(q.version)
	return q, nil
}

// learnVersion sets QEMU's version in a handle that has none.
func (m *machine) learnVersion(version string) {
	if h := m.Handle(); h.Version == "" {
		h.Version = version
		m.SetHandle(h)
	}
}

// explain returns the error of a failed command. If the connection was lost, the
// error says whether the machine has ended.
func (m *machine) explain(err error) error {
	var lost *net.OpError
	if errors.Is(err, errQMPClosed) || errors.As(err, &lost) {
		return m.Explain(err)
	}
	return err
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, ch vmm.Channel) (net.Conn, error) {
	name, ok := map[vmm.Channel]string{vmm.ChannelAgent: agentSocket, vmm.ChannelConsole: consoleSocket}[ch]
	if !ok {
		return nil, errs.New(errs.Unsupported, "no_channel", "cannot dial channel %q: QEMU machines do not have it", ch)
	}
	if ch == vmm.ChannelConsole {
		if conn := m.claimConsole(); conn != nil {
			return conn, nil
		}
	}
	if err := m.CloseConn(ch); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.Handle().Dir, name))
	if err != nil {
		return nil, m.explain(err)
	}
	if err := m.SetConn(ch, conn); err != nil {
		return nil, err
	}
	return conn, nil
}

// claimConsole returns, once, the console connection that attach made.
func (m *machine) claimConsole() net.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	conn := m.console
	m.console = nil
	if m.ChannelsClosed() {
		return nil
	}
	return conn
}

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
