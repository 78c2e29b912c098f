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
	session   *yamux.Session
	version   int
	times     times
	slots     chan struct{} // has one element for each open request
	longSlots chan struct{} // the same for requests that may stay open for long
	listSlots chan struct{} // the same for lists of processes

	mu      sync.Mutex
	closed  bool
	spawned sync.WaitGroup
}

// Connect waits until an agent answers on conn, or ctx is done, and starts a session.
// The session owns conn and closes it. Connect closes conn if it fails.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	version, rest, err := greet(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("no agent answered: %w", err)
	}
	session, err := yamux.Client(&buffered{Reader: newGuard(rest), conn: conn}, config(hostPing, hostTimeout))
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("cannot start a session: %w", err)
	}
	return &Client{
		session: session, version: version, times: defaultTimes,
		slots: make(chan struct{}, maxRequests), longSlots: make(chan struct{}, maxLong), listSlots: make(chan struct{}, maxLists),
	}, nil
}

// Lost is closed when either end has ended the session.
func (c *Client) Lost() <-chan struct{} { return c.session.CloseChan() }

// IsLost reports whether the session has ended.
func (c *Client) IsLost() bool { return c.session.IsClosed() }

// Close ends the session and its requests.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.session.Close()
	c.spawned.Wait()
	return err
}

// Hello asks for the agent's version and the guest's boot id.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	err := c.call(ctx, OpHello, nil, &h)
	return h, err
}

// Status asks for the guest's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, OpStatus, nil, &s)
	return s, err
}

// Shutdown asks the guest to power off or reboot, and returns when the guest has started
// to do so.
func (c *Client) Shutdown(ctx context.Context, reboot bool) error {
	return c.call(ctx, OpShutdown, ShutdownArgs{Reboot: reboot}, nil)
}

// Watch calls report with the guest's state now and after each change, in order, until
// report fails, ctx is done or the session is lost. It returns the cause of its end.
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

// call makes a request that has one reply.
func (c *Client) call(ctx context.Context, op Op, args, result any) error {
	return c.exchange(ctx, op, args, func(stream io.Reader) error { return readResult(stream, result) })
}

// exchange makes a request and calls read with the stream of its replies. The stream
// ends when ctx is done.
func (c *Client) exchange(ctx context.Context, op Op, args any, read func(io.Reader) error) error {
	stream, err := c.begin(ctx, op, args)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	return stream.explain(read(stream))
}

func readResult(r io.Reader, result any) error {
	var reply Reply
	if err := readMessage(r, &reply); err != nil {
		return err
	}
	return reply.decodeResult(result)
}

// config returns the limits of a yamux session. Its windows are the smallest that yamux
// allows, 256 KiB per stream.
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

// buffered is a connection whose reader may have buffered bytes. Only yamux's goroutine
// writes to it.
type buffered struct {
	io.Reader
	conn   io.WriteCloser
	header []byte // of a frame whose payload follows in the next Write
}

// Write joins the header and the payload of a frame, which yamux writes one after
// the other: each write to a virtio-serial port interrupts the guest.
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
	if b.header = b.header[:0]; cap(b.header) > maxBuffered {
		b.header = nil
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *buffered) Close() error { return b.conn.Close() }
