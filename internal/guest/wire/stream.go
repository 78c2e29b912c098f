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

// ErrBusy says that a session has as many requests under way as it may.
var ErrBusy = errors.New("too many requests to the agent are under way")

// stream is one request of a client, from the first byte sent.
type stream struct {
	*yamux.Stream
	op       Op
	patience time.Duration
	stop     func() bool  // lets go of the context
	cause    func() error // why it was cut off
	close    func()

	reading sync.Mutex // held by the one who reads
	left    bool       // nobody else reads any more
}

// begin opens a stream and sends the request. It does not wait for a place:
// the error is ErrBusy when there is none. When ctx is done, until Close, the
// stream is cut off.
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
		return nil, s.fault(err)
	}
	return s, nil
}

// sendRequest sends it. A guest that reads nothing, as one that is reset,
// makes yamux wait for longer than ctx may allow; and without end when the
// request is larger than a stream's window.
func (c *Client) sendRequest(ctx context.Context, s *stream, r Request) error {
	sent := make(chan error, 1)
	_ = s.SetWriteDeadline(time.Now().Add(s.patience))
	c.spawn(func() { sent <- writeLimited(s, r, maxRequest) })
	select {
	case err := <-sent:
		if err != nil {
			return err
		}
		_ = s.SetWriteDeadline(time.Time{})
		return s.cause() // its deadline may have been undone just now
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open takes a place and opens a stream. The session itself may make it wait
// for an agent that acknowledges none; it gives up after the time that config
// sets.
func (c *Client) open(ctx context.Context, op Op) (*stream, error) {
	free, err := c.place(op)
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
		s := &stream{Stream: o.stream, op: op, patience: c.times.patience, cause: ctx.Err}
		s.stop = context.AfterFunc(ctx, func() { _ = o.stream.SetDeadline(time.Now()) })
		s.close = sync.OnceFunc(func() {
			_ = s.SetDeadline(time.Now()) // ends what is under way
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

// place takes one, and returns what gives it back.
func (c *Client) place(op Op) (free func(), err error) {
	taken := []chan struct{}{c.places}
	switch {
	case op.lasts():
		taken = []chan struct{}{c.lasting, c.places}
	case op == OpProcesses:
		taken = []chan struct{}{c.listing, c.places}
	}
	for i, places := range taken {
		select {
		case places <- struct{}{}:
		default:
			for _, before := range taken[:i] {
				<-before
			}
			return nil, ErrBusy
		}
	}
	return func() {
		for _, places := range taken {
			<-places
		}
	}, nil
}

// end closes our side of a stream. The place is free once the agent has closed
// its own, or was made to: until then it may fill the stream's window.
func (c *Client) end(s *stream, free func()) {
	c.spawn(func() {
		defer free()
		_ = s.Stream.Close()
		s.leave()
		for {
			_ = s.SetReadDeadline(time.Time{})
			// The context may cut off the stream once more, meanwhile.
			if _, err := io.Copy(io.Discard, s.Stream); !errors.Is(err, yamux.ErrTimeout) {
				return
			}
		}
	})
}

// spawn runs f, for which Close waits. In a client that is closed nothing
// waits any more, and f runs at once.
func (c *Client) spawn(f func()) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		f()
		return
	}
	c.closing.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.closing.Done()
		f()
	}()
}

// Read reads what the agent sends, until Close.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.left {
		return 0, yamux.ErrStreamClosed
	}
	return s.Stream.Read(p)
}

// leave waits for the end of a Read under way, which its deadline brings, and
// lets none begin.
func (s *stream) leave() {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.left = true
}

// Close ends the request, and a Read or Write under way.
func (s *stream) Close() error {
	s.stop()
	s.close()
	return nil
}

// fault says what was asked for when err came, and prefers the context's word
// for why.
func (s *stream) fault(err error) error {
	if err == nil {
		return nil
	}
	if cause := s.cause(); cause != nil {
		err = cause
	}
	return fmt.Errorf("cannot ask the agent for %s: %w", s.op, err)
}
