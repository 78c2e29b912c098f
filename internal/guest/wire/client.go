package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// Client is hatchd's end of a session. Its methods may be called from several
// goroutines at once.
type Client struct {
	session *yamux.Session
	version int
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
	return &Client{session: session, version: version}, nil
}

// Lost is closed when the session has ended, from whatever side.
func (c *Client) Lost() <-chan struct{} { return c.session.CloseChan() }

// Close ends the session and its requests.
func (c *Client) Close() error { return c.session.Close() }

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
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Now()) })
	defer stop()
	return asking(ctx, op, read(stream))
}

// begin opens a stream and sends the request; what follows on the stream is
// the caller's. Until the request is sent, ctx cuts it off.
func (c *Client) begin(ctx context.Context, op Op, args any) (*yamux.Stream, error) {
	request := Request{Version: c.version, Op: op}
	if args != nil {
		raw, err := json.Marshal(args)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the arguments of %s: %w", op, err)
		}
		request.Args = raw
	}
	stream, err := c.open(ctx)
	if err != nil {
		return nil, asking(ctx, op, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Now()) })
	defer stop()
	if err := writeMessage(stream, request); err != nil {
		_ = stream.Close()
		return nil, asking(ctx, op, err)
	}
	return stream, nil
}

// asking says what a request that ended with err asked for, and that ctx ended
// it if it did.
func asking(ctx context.Context, op Op, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("cannot ask the agent for %s: %w", op, err)
}

// open opens a stream. The session itself may make it wait for an agent that
// acknowledges none; it gives up after the time that config sets.
func (c *Client) open(ctx context.Context) (*yamux.Stream, error) {
	type opened struct {
		stream *yamux.Stream
		err    error
	}
	result := make(chan opened, 1)
	go func() {
		stream, err := c.session.OpenStream()
		result <- opened{stream, err}
	}()
	select {
	case o := <-result:
		return o.stream, o.err
	case <-ctx.Done():
		go func() {
			if o := <-result; o.stream != nil {
				_ = o.stream.Close()
			}
		}()
		return nil, ctx.Err()
	}
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

// buffered puts a reader that already holds bytes in front of a connection.
type buffered struct {
	io.Reader
	conn io.WriteCloser
}

func (b *buffered) Write(p []byte) (int, error) { return b.conn.Write(p) }
func (b *buffered) Close() error                { return b.conn.Close() }
