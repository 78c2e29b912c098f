package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
)

// run reads one connection after the other until the command ends.
func (s *ExecSession) run(ctx context.Context, offset int64) {
	defer close(s.output)
	for {
		l := s.link // only run changes it
		again, err := s.follow(ctx, l.conn, &offset)
		if !again {
			s.end(ctx, l.conn, err)
			return
		}
		_ = l.conn.CloseNow()
		if lost := s.broken(l); lost != nil {
			s.end(ctx, nil, lost)
			return
		}
		conn, err := s.reattach(ctx, offset, err)
		if err != nil {
			s.end(ctx, nil, err)
			return
		}
		s.resume(conn)
	}
}

// follow passes on what a connection tells, and returns whether it is worth
// another one, and why it ended.
func (s *ExecSession) follow(ctx context.Context, conn *websocket.Conn, offset *int64) (again bool, err error) {
	var told error // by the server
	for {
		kind, message, err := conn.Read(ctx)
		if err != nil {
			return s.afterBreak(ctx, err, told)
		}
		next := ExecOutput{}
		if kind == websocket.MessageBinary {
			if len(message) == 0 {
				return false, errors.New("the server sent output without a channel")
			}
			next.Stderr, next.Data = message[0] == api.ChannelStderr, message[1:]
		} else {
			var m api.ExecMessage
			if err := json.Unmarshal(message, &m); err != nil {
				return false, fmt.Errorf("cannot read the server's message: %w", err)
			}
			if m.Type == api.ExecError {
				told = messageError(m)
			}
			var tells bool
			if next, tells = s.hear(m); !tells {
				continue
			}
		}
		*offset += int64(len(next.Data)) + next.Lost
		next.Offset = *offset
		select {
		case s.output <- next:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if next.Exit != nil {
			return false, nil
		}
	}
}

// afterBreak judges a connection that has ended before the command did.
func (s *ExecSession) afterBreak(ctx context.Context, broke, told error) (again bool, err error) {
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case websocket.CloseStatus(broke) == websocket.StatusPolicyViolation && told != nil:
		return false, told
	case told != nil:
		return true, told
	}
	return true, fmt.Errorf("the connection to the command broke: %w", broke)
}

// hear takes note of a text message, or returns what it tells the reader.
func (s *ExecSession) hear(m api.ExecMessage) (next ExecOutput, tells bool) {
	switch m.Type {
	case api.ExecOutputLost:
		return ExecOutput{Lost: max(0, m.Bytes)}, true
	case api.ExecEnded:
		exit := &ExecExit{Signal: m.Signal, TimedOut: m.TimedOut}
		if m.ExitCode != nil {
			exit.Code = *m.ExitCode
		}
		return ExecOutput{Exit: exit}, true
	case api.ExecStdinTaken:
		s.change(func() { s.link.take(m.Bytes) })
	case api.ExecStdinClosed:
		s.change(func() { s.stopInput(ErrStdinClosed) })
	}
	return ExecOutput{}, false
}

// take forgets the messages that the command has taken. The server counts all
// bytes of this connection.
func (l *link) take(total int64) {
	for len(l.unsent) > 0 && l.taken+int64(l.unsent[0]) <= total {
		l.taken += int64(l.unsent[0])
		l.unsent = l.unsent[1:]
	}
}

func (s *ExecSession) change(what func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what()
	close(s.changed)
	s.changed = make(chan struct{})
}

// stopInput lets writes fail from here on, with the first reason for it.
func (s *ExecSession) stopInput(why error) {
	if s.input == nil {
		s.input = why
	}
}

// errInputLost is what a write ends with when input may not have arrived.
var errInputLost = errors.New("the connection broke while input was under way: some of it may be lost")

// broken takes a connection away. What was typed on a terminal can be typed
// again. Other input may be lost: the next write tells, or broken does when all
// was written, for the command must not take a part for the whole.
func (s *ExecSession) broken(l *link) (lost error) {
	s.change(func() {
		s.link = nil
		if len(l.unsent) == 0 || s.exec.TTY != nil || s.input != nil {
			return
		}
		s.stopInput(errInputLost)
		if s.ended {
			lost = errInputLost
		}
	})
	return lost
}

// resume goes on with a new connection.
func (s *ExecSession) resume(conn *websocket.Conn) {
	l := &link{conn: conn}
	var ended bool
	s.change(func() { s.link, ended = l, s.ended && s.input == nil })
	if ended {
		l.closeStdin()
	}
}

// reattach attaches again, until it is hopeless or too late; because is why the
// last connection ended.
func (s *ExecSession) reattach(ctx context.Context, offset int64, because error) (*websocket.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, retryPatience)
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-bounded.Done():
			timer.Stop()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, because
		}
		conn, err := s.attachOnce(bounded, offset)
		if err == nil || hopeless(err) {
			return conn, err
		}
		if bounded.Err() == nil {
			because = err
		}
	}
}

func (s *ExecSession) attachOnce(ctx context.Context, offset int64) (*websocket.Conn, error) {
	conn, err := s.c.attach(ctx, s.vmID, s.exec.ID, offset)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxMessage)
	m, err := awaitStart(ctx, conn)
	if err == nil && *m.Offset != offset {
		err = fmt.Errorf("the server goes on at byte %d of the output, not at %d", *m.Offset, offset)
	}
	if err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	return conn, nil
}

// hopeless reports whether the server will not say otherwise when it is asked
// again.
func hopeless(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch status := e.Status(); status {
	case http.StatusTooManyRequests, 0:
		return false
	default:
		return status < http.StatusInternalServerError || status == http.StatusNotImplemented
	}
}

// end closes the connection, if there is one, and notes why there is no more.
func (s *ExecSession) end(ctx context.Context, conn *websocket.Conn, err error) {
	s.change(func() {
		s.link, s.fault = nil, err
		s.stopInput(ErrStdinClosed)
	})
	switch {
	case conn == nil:
	case ctx.Err() != nil:
		_ = conn.CloseNow() // a read was cancelled: the connection is cut already
	default:
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
}
