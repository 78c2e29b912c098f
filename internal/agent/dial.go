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
	// maxDialled limits the connections that the host has open.
	maxDialled = 128
	// dialTimeout matters only if a program does not accept: otherwise connecting to
	// loopback takes no time.
	dialTimeout = 5 * time.Second
)

// Dial implements [wire.DialHandler].
func (a *Agent) Dial(ctx context.Context, port int) (wire.DialConn, error) {
	select {
	case a.dialled <- struct{}{}:
	default:
		return nil, wire.Refuse(wire.CodeBusy, "the host has %d connections open; that is the limit", maxDialled)
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: -1}).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		<-a.dialled
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, wire.Refuse(wire.CodeRefused, "no program listens on port %d", port)
		}
		return nil, err
	}
	return &slotConn{TCPConn: conn.(*net.TCPConn), free: sync.OnceFunc(func() { <-a.dialled })}, nil
}

// slotConn frees its slot when it is closed.
type slotConn struct {
	*net.TCPConn
	free func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	defer c.free()
	return c.TCPConn.Close()
}
