package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// ErrBusy means that a session has its maximum number of open requests.
var ErrBusy = errors.New("too many requests to the agent are open")

// stream is one request of a client.
type stream struct {
	*yamux.Stream
	op      Op
	timeout time.Duration // until the first answer, and between frames
	stop    func() bool   // stops watching the context
	cause   func() error  // the context's error
	close   func()

	reading sync.Mutex // held during a Read
	closed  bool       // Read fails
}

// begin opens a stream and sends the request. It does not wait for a slot: the error is
// ErrBusy if none is free. Once ctx is done, reads and writes fail.
func (c *Client) begin(ctx context.Context, op Op, args any) (*stream, error) {
	request := Request{Version: c.version, Op: op}
	if args != nil {
		raw, err := json.Marshal(args)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the arguments of %s: %w", op, err)
		}
		request.Args = raw
	}
	s, err := c.open(ctx, op)
	if err != nil {
		return nil, fmt.Errorf("cannot ask the agent for %s: %w", op, err)
	}
	if err := c.sendRequest(ctx, s, request); err != nil {
		_ = s.Close()
		return nil, s.explain(err)
	}
	return s, nil
}

// sendRequest sends a request, and returns when ctx is done. When a guest reads nothing,
// such as one that is being reset, yamux may wait longer than ctx allows, and forever if
// the request is larger than a stream's window.
func (c *Client) sendRequest(ctx context.Context, s *stream, r Request) error {
	sent := make(chan error, 1)
	_ = s.SetWriteDeadline(time.Now().Add(s.timeout))
	c.spawn(func() { sent <- writeLimited(s, r, maxRequest) })
	select {
	case err := <-sent:
		if err != nil {
			return err
		}
		_ = s.SetWriteDeadline(time.Time{})
		return s.cause() // SetWriteDeadline may have replaced the context's deadline
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open acquires a slot and opens a stream. yamux waits for an agent that does not
// acknowledge it up to the StreamOpenTimeout of its config.
func (c *Client) open(ctx context.Context, op Op) (*stream, error) {
	free, err := c.acquireSlot(op)
	if err != nil {
		return nil, err
	}
	type opened struct {
		stream *yamux.Stream
		err    error
	}
	result := make(chan opened, 1)
	c.spawn(func() {
		y, err := c.session.OpenStream()
		result <- opened{y, err}
	})
	select {
	case o := <-result:
		if o.err != nil {
			free()
			return nil, o.err
		}
		s := &stream{Stream: o.stream, op: op, timeout: c.times.answer, cause: ctx.Err}
		s.stop = context.AfterFunc(ctx, func() { _ = o.stream.SetDeadline(time.Now()) })
		s.close = sync.OnceFunc(func() {
			_ = s.SetDeadline(time.Now()) // interrupts a Read or Write
			c.end(s, free)
		})
		return s, nil
	case <-ctx.Done():
		c.spawn(func() {
			if o := <-result; o.err == nil {
				c.end(&stream{Stream: o.stream}, free)
				return
			}
			free()
		})
		return nil, ctx.Err()
	}
}

func (c *Client) acquireSlot(op Op) (free func(), err error) {
	needed := []chan struct{}{c.slots}
	switch {
	case op.long():
		needed = []chan struct{}{c.longSlots, c.slots}
	case op == OpProcesses:
		needed = []chan struct{}{c.listSlots, c.slots}
	}
	for i, slots := range needed {
		select {
		case slots <- struct{}{}:
		default:
			for _, acquired := range needed[:i] {
				<-acquired
			}
			return nil, ErrBusy
		}
	}
	return func() {
		for _, slots := range needed {
			<-slots
		}
	}, nil
}

// end closes hatchd's side of a stream. It frees the slot only when the agent has closed
// its side, or yamux has done so: until then the agent may fill the stream's window.
func (c *Client) end(s *stream, free func()) {
	c.spawn(func() {
		defer free()
		_ = s.Stream.Close()
		s.stopReading()
		for {
			_ = s.SetReadDeadline(time.Time{})
			// The context may set a deadline again.
			if _, err := io.Copy(io.Discard, s.Stream); !errors.Is(err, yamux.ErrTimeout) {
				return
			}
		}
	})
}

// spawn runs f in a goroutine that Close waits for. Once the client is closed, f
// does not block and runs at once.
func (c *Client) spawn(f func()) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		f()
		return
	}
	c.spawned.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.spawned.Done()
		f()
	}()
}

// Read implements [io.Reader]. It fails after Close.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed {
		return 0, yamux.ErrStreamClosed
	}
	return s.Stream.Read(p)
}

// stopReading waits for the end of a Read, which the deadline interrupts, and makes later
// ones fail.
func (s *stream) stopReading() {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.closed = true
}

// Close ends the request, and a Read or Write of another goroutine.
func (s *stream) Close() error {
	s.stop()
	s.close()
	return nil
}

// explain adds the operation to err. It replaces err with the context's error, if any.
func (s *stream) explain(err error) error {
	if err == nil {
		return nil
	}
	if cause := s.cause(); cause != nil {
		err = cause
	}
	return fmt.Errorf("cannot ask the agent for %s: %w", s.op, err)
}
