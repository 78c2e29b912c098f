//go:build linux && amd64

package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// dialAgent opens a stream to the agent's port in the guest. Firecracker
// listens on one socket for all ports, and is told first which is meant.
func dialAgent(ctx context.Context, root string) (net.Conn, error) {
	conn, err := dialWithin(ctx, root, vsockSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = askForPort(conn, AgentPort)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// maxOK is longer than "OK 4294967295\n".
const maxOK = 32

func askForPort(conn io.ReadWriter, port int) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	// One byte at a time: what follows the line is the agent's.
	line, err := bufio.NewReaderSize(io.LimitReader(oneByOne{conn}, maxOK), 16).ReadString('\n')
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Unavailable, "agent_unavailable", "no agent listens in the guest")
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "OK ") {
		return errs.New(errs.Unavailable, "agent_unavailable", "the guest's vsock device answers with something else than OK")
	}
	return nil
}

type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, ch vmm.Channel) (net.Conn, error) {
	if ch != vmm.ChannelAgent && ch != vmm.ChannelConsole {
		return nil, errs.New(errs.Unsupported, "no_channel", "cannot dial channel %q: Firecracker machines do not have it", ch)
	}
	if err := m.endChannel(ch); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	var conn net.Conn
	var err error
	if ch == vmm.ChannelConsole {
		conn, err = dialConsole(m.handle.Dir, &m.heard)
	} else {
		conn, err = dialAgent(ctx, m.api.root)
	}
	if err != nil {
		return nil, m.explain(err)
	}
	return conn, m.keep(ch, conn)
}

// endChannel ends the channel's connection, if there is one.
func (m *machine) endChannel(ch vmm.Channel) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hungUp {
		return errGone(m.handle.ID)
	}
	if old := m.conns[ch]; old != nil {
		_ = old.Close()
		delete(m.conns, ch)
	}
	return nil
}

func (m *machine) keep(ch vmm.Channel, conn net.Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hungUp {
		_ = conn.Close()
		return errGone(m.handle.ID)
	}
	if other := m.conns[ch]; other != nil {
		_ = other.Close() // of a Dial at the same time
	}
	m.conns[ch] = conn
	return nil
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

// lastReader returns the connection that reads the console, nil when none does.
func (m *machine) lastReader() *consoleConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, _ := m.conns[vmm.ChannelConsole].(*consoleConn)
	return c
}
