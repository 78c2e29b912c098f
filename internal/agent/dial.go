package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

const (
	// maxDialled bounds the connections that are open for the host.
	maxDialled = 128
	// dialLimit bounds a connecting, which on loopback takes no time, unless a
	// program does not accept.
	dialLimit = 5 * time.Second
)

// Dial implements [wire.DialHandler].
func (a *Agent) Dial(ctx context.Context, port int) (wire.DialConn, error) {
	select {
	case a.dialled <- struct{}{}:
	default:
		return nil, wire.Refuse(wire.CodeBusy, "%d connections are open already", maxDialled)
	}
	conn, err := (&net.Dialer{Timeout: dialLimit, KeepAlive: -1}).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		<-a.dialled
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, wire.Refuse(wire.CodeRefused, "nobody listens on port %d", port)
		}
		return nil, err
	}
	return &slotConn{TCPConn: conn.(*net.TCPConn), free: sync.OnceFunc(func() { <-a.dialled })}, nil
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	*net.TCPConn
	free func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	defer c.free()
	return c.TCPConn.Close()
}
