package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
)

// run reads from one connection after the other until the command ends.
func (s *ExecSession) run(ctx context.Context, offset int64) {
	defer close(s.output)
	for {
		current := s.connection // only run changes it
		retry, err := s.readAll(ctx, current.conn, &offset)
		if !retry {
			s.end(ctx, current.conn, err)
			return
		}
		_ = current.conn.CloseNow()
		if lost := s.disconnect(current); lost != nil {
			s.end(ctx, nil, lost)
			return
		}
		conn, err := s.reattach(ctx, offset, err)
		if err != nil {
			s.end(ctx, nil, err)
			return
		}
		next := &connection{conn: conn}
		var again []string
		s.update(func() {
			s.connection, again = next, slices.Clone(s.unread)
			if s.stdinClosed && s.inputErr == nil {
				again = append(again, api.ExecCloseStdin)
			}
		})
		for _, message := range again {
			next.say(message)
		}
	}
}

// readAll reads a connection until it ends. It returns why, and whether to
// attach again.
func (s *ExecSession) readAll(ctx context.Context, conn *websocket.Conn, offset *int64) (retry bool, err error) {
	var serverErr error
	for {
		kind, message, err := conn.Read(ctx)
		if err != nil {
			return retryAfter(ctx, err, serverErr)
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
				serverErr = messageError(m)
			}
			var isOutput bool
			if next, isOutput = s.handle(m); !isOutput {
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

// retryAfter decides whether to attach again after a connection that ended
// before the command did. serverErr is the last error that the server sent.
func retryAfter(ctx context.Context, readErr, serverErr error) (retry bool, err error) {
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case websocket.CloseStatus(readErr) == websocket.StatusPolicyViolation && serverErr != nil:
		return false, serverErr
	case serverErr != nil:
		return true, serverErr
	}
	return true, fmt.Errorf("the connection to the command broke: %w", readErr)
}

// handle handles a text message, and returns the output that it means, if any.
func (s *ExecSession) handle(m api.ExecMessage) (next ExecOutput, isOutput bool) {
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
		s.update(func() { s.connection.acknowledge(m.Bytes) })
	case api.ExecStdinClosed:
		s.update(func() { s.failInput(ErrStdinClosed) })
	}
	return ExecOutput{}, false
}

// acknowledge forgets the messages that the command has read. total counts all
// bytes of this connection.
func (c *connection) acknowledge(total int64) {
	for len(c.unacked) > 0 && c.ackedBytes+int64(c.unacked[0]) <= total {
		c.ackedBytes += int64(c.unacked[0])
		c.unacked = c.unacked[1:]
	}
}

// update changes fields under the lock and wakes waiting writes.
func (s *ExecSession) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// failInput makes later writes fail, with the first error that it is given.
func (s *ExecSession) failInput(err error) {
	if s.inputErr == nil {
		s.inputErr = err
	}
}

// errInputLost is the error of writes after input may have been lost.
var errInputLost = errors.New("the connection broke while input was being sent: some of it may be lost")

// disconnect drops a broken connection. Input on it may be lost; only a user at a
// terminal can repeat it. Otherwise the next write fails or, if stdin was closed
// already, disconnect does: the command must not run on part of its input.
func (s *ExecSession) disconnect(broken *connection) (lost error) {
	s.update(func() {
		s.connection = nil
		if len(broken.unacked) == 0 || s.exec.TTY != nil || s.inputErr != nil {
			return
		}
		s.failInput(errInputLost)
		if s.stdinClosed {
			lost = errInputLost
		}
	})
	return lost
}

// reattach attaches again until an attempt succeeds, the server refuses, or
// attachTimeout has passed. It then returns the last error, at first cause.
func (s *ExecSession) reattach(ctx context.Context, offset int64, cause error) (*websocket.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	retry := &backoff{min: minAttachRetry, max: maxAttachRetry}
	for {
		if retry.wait(bounded, cause) != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, cause
		}
		conn, err := s.attachAt(bounded, offset)
		if err == nil || isFinal(err) {
			return conn, err
		}
		if bounded.Err() == nil {
			cause = err
		}
	}
}

// attachAt makes one attempt to attach where the output ended.
func (s *ExecSession) attachAt(ctx context.Context, offset int64) (*websocket.Conn, error) {
	conn, err := s.c.attach(ctx, s.vmID, s.exec.ID, offset)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxMessage)
	m, err := awaitStart(ctx, conn)
	if err == nil && *m.Offset != offset {
		err = fmt.Errorf("the server continues at byte %d of the output, not at %d", *m.Offset, offset)
	}
	if err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	return conn, nil
}

// end closes the connection, if there is one, and sets why there is no more
// output.
func (s *ExecSession) end(ctx context.Context, conn *websocket.Conn, err error) {
	s.update(func() {
		s.connection, s.outputErr = nil, err
		s.failInput(ErrStdinClosed)
	})
	switch {
	case conn == nil:
	case ctx.Err() != nil:
		_ = conn.CloseNow() // the cancelled read has closed it already
	default:
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
}
