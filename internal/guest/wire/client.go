package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Client is hatchd's end of a session. Its methods may be called from several
// goroutines at once.
type Client struct {
	session *yamux.Session
	version int
	times   times
	places  chan struct{} // one for each open request
	lasting chan struct{} // of those, the ones that may last
	listing chan struct{} // and the ones whose answers may be large

	mu      sync.Mutex
	closed  bool
	closing sync.WaitGroup // what spawn has begun
}

// Connect waits, without end until ctx is done, for an agent to answer on conn,
// and begins a session. conn is the session's from here on: it is closed with
// it, and when Connect fails.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	version, rest, err := greet(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("no agent answered: %w", err)
	}
	session, err := yamux.Client(&buffered{Reader: newGuard(rest), conn: conn}, config(hostPing, hostTimeout))
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("cannot begin a session: %w", err)
	}
	return &Client{
		session: session, version: version, times: usualTimes,
		places: make(chan struct{}, maxRequests), lasting: make(chan struct{}, maxLasting), listing: make(chan struct{}, maxListing),
	}, nil
}

// Lost is closed when the session has ended, from whatever side.
func (c *Client) Lost() <-chan struct{} { return c.session.CloseChan() }

// IsLost reports whether the session has ended.
func (c *Client) IsLost() bool { return c.session.IsClosed() }

// Close ends the session and its requests.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.session.Close()
	c.closing.Wait()
	return err
}

// Hello asks who answers.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	err := c.call(ctx, OpHello, nil, &h)
	return h, err
}

// Status asks for the guest's present state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, OpStatus, nil, &s)
	return s, err
}

// Shutdown asks the guest to power off or reboot, and returns when it has
// begun to.
func (c *Client) Shutdown(ctx context.Context, reboot bool) error {
	return c.call(ctx, OpShutdown, ShutdownArgs{Reboot: reboot}, nil)
}

// Watch calls report with the guest's state now and after each change, in
// order, until report fails, ctx is done or the session is lost. It returns why
// it ended.
func (c *Client) Watch(ctx context.Context, report func(Status) error) error {
	return c.exchange(ctx, OpWatch, nil, func(stream io.Reader) error {
		for {
			var s Status
			if err := readResult(stream, &s); err != nil {
				return err
			}
			if err := report(s); err != nil {
				return err
			}
		}
	})
}

// call is an exchange with one reply.
func (c *Client) call(ctx context.Context, op Op, args, result any) error {
	return c.exchange(ctx, op, args, func(stream io.Reader) error { return readResult(stream, result) })
}

// exchange begins a request and lets read take what comes. When ctx is done
// the stream is cut off.
func (c *Client) exchange(ctx context.Context, op Op, args any, read func(io.Reader) error) error {
	stream, err := c.begin(ctx, op, args)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	return stream.fault(read(stream))
}

func readResult(r io.Reader, result any) error {
	var reply Reply
	if err := readMessage(r, &reply); err != nil {
		return err
	}
	return reply.decodeResult(result)
}

// config sets the bounds of a yamux session: its windows are the smallest that
// yamux knows, 256 KiB per stream.
func config(ping, timeout time.Duration) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = maxStreams
	c.KeepAliveInterval = ping
	c.ConnectionWriteTimeout = timeout
	c.StreamOpenTimeout = timeout
	c.StreamCloseTimeout = timeout
	c.LogOutput = io.Discard // every error of a session reaches its caller
	return c
}

// buffered puts a reader that already holds bytes in front of a connection. It
// is written to by one goroutine: yamux's.
type buffered struct {
	io.Reader
	conn   io.WriteCloser
	header []byte // of a frame whose body is still to come
}

// Write writes a frame in one piece, which yamux does in two: each write to a
// virtio-serial port interrupts the guest.
func (b *buffered) Write(p []byte) (int, error) {
	if len(b.header) == 0 && len(p) == headerSize && p[1] == typeData && binary.BigEndian.Uint32(p[8:]) > 0 {
		b.header = append(b.header, p...)
		return len(p), nil
	}
	whole := p
	if len(b.header) > 0 {
		b.header = append(b.header, p...)
		whole = b.header
	}
	_, err := b.conn.Write(whole)
	if b.header = b.header[:0]; cap(b.header) > maxGathered {
		b.header = nil
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *buffered) Close() error { return b.conn.Close() }
