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

// dialAgent opens a stream to the agent's port in the guest. Firecracker listens on
// one socket for all vsock ports; the first line names the port.
func dialAgent(ctx context.Context, root string) (net.Conn, error) {
	conn, err := dialWithin(ctx, root, vsockSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = connectPort(conn, AgentPort)
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

func connectPort(conn io.ReadWriter, port int) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	// One byte at a time: the bytes after the line belong to the agent's protocol.
	line, err := bufio.NewReaderSize(io.LimitReader(oneByteReader{conn}, maxOK), 16).ReadString('\n')
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Unavailable, "agent_unavailable", "no agent listens in the guest")
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "OK ") {
		return errs.New(errs.Unavailable, "agent_unavailable", "the guest's vsock device did not answer with OK")
	}
	return nil
}

type oneByteReader struct{ r io.Reader }

func (o oneByteReader) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, ch vmm.Channel) (net.Conn, error) {
	if ch != vmm.ChannelAgent && ch != vmm.ChannelConsole {
		return nil, errs.New(errs.Unsupported, "no_channel", "cannot dial channel %q: Firecracker machines do not have it", ch)
	}
	if err := m.CloseConn(ch); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var conn net.Conn
	var err error
	if ch == vmm.ChannelConsole {
		conn, err = dialConsole(m.Handle().Dir, &m.tail)
	} else {
		conn, err = dialAgent(ctx, m.api.root)
	}
	if err != nil {
		return nil, m.explain(err)
	}
	if err := m.SetConn(ch, conn); err != nil {
		return nil, err
	}
	return conn, nil
}
