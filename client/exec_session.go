package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
)

// Bounds of a session.
const (
	stdinMessage  = 64 << 10 // bytes
	stdinUnderWay = 2        // messages of stdin that the command has not taken
	outputAhead   = 32       // messages of output that are read before they are asked for
	maxMessage    = 1 << 20  // bytes of a message from the server
)

// Waits between two attempts to attach again, and how long it is tried.
const (
	firstRetry    = 100 * time.Millisecond
	lastRetry     = 2 * time.Second
	retryPatience = 30 * time.Second
)

// ExecSession is a command in a VM that one is attached to. When the connection
// breaks it attaches again by itself, where the output ended.
//
// One goroutine may read, and one may write, at a time. It must be closed.
type ExecSession struct {
	c    *Client
	vmID string
	exec api.Exec

	output chan ExecOutput // closed after the last
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is under way any more

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something below changes
	link    *link         // nil while there is no connection
	input   error         // why nothing can be written any more
	ended   bool          // stdin was closed
	fault   error         // why there is no more output; nil after the exit
}

// link is one connection.
type link struct {
	conn   *websocket.Conn
	unsent []int // lengths of the messages of stdin that were not taken
	taken  int64
}

// ExecOutput is the next thing a session tells: output (Data), a gap in it
// (Lost), or the end (Exit).
type ExecOutput struct {
	Stderr bool
	Data   []byte
	Offset int64 // of what follows, in bytes of stdout and stderr; see AttachExec
	Lost   int64 // bytes that the guest did not keep, instead of Data
	Exit   *ExecExit
}

// ExecExit tells how a command ended.
type ExecExit struct {
	Code     int    // as a shell has it: 128+N for signal N, 127 not found, 126 not to be run
	Signal   string // such as SIGKILL; "" when it exited by itself
	TimedOut bool
}

// OpenExec starts a command and attaches to it. Set body.StdinOpen to write to
// it. The command goes on when the session is closed, or ctx ends.
func (c *Client) OpenExec(ctx context.Context, vmID string, body api.RunExec) (*ExecSession, error) {
	path, err := item(vms, vmID, "exec")
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return nil, err
	}
	first, err := json.Marshal(body)
	if err == nil {
		err = conn.Write(ctx, websocket.MessageText, first)
	}
	if err != nil {
		_ = conn.CloseNow()
		return nil, fmt.Errorf("cannot send the command: %w", err)
	}
	return c.session(ctx, vmID, conn, body.StdinOpen)
}

// AttachExec attaches to a command whose output is given from offset from; 0 is
// its beginning.
func (c *Client) AttachExec(ctx context.Context, vmID, id string, from int64) (*ExecSession, error) {
	conn, err := c.attach(ctx, vmID, id, from)
	if err != nil {
		return nil, err
	}
	return c.session(ctx, vmID, conn, true)
}

func (c *Client) attach(ctx context.Context, vmID, id string, from int64) (*websocket.Conn, error) {
	execs, err := execsOf(vmID)
	if err != nil {
		return nil, err
	}
	path, err := item(execs, id, "attach")
	if err != nil {
		return nil, err
	}
	return c.dial(ctx, call{method: http.MethodGet, path: path, query: url.Values{"from": {strconv.FormatInt(from, 10)}}})
}

// session begins a session on a connection that is about to tell of its start.
func (c *Client) session(ctx context.Context, vmID string, conn *websocket.Conn, writable bool) (*ExecSession, error) {
	conn.SetReadLimit(maxMessage)
	m, err := awaitStart(ctx, conn)
	if err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &ExecSession{
		c: c, vmID: vmID, exec: *m.Exec, output: make(chan ExecOutput, outputAhead), cancel: cancel, done: make(chan struct{}),
		changed: make(chan struct{}), link: &link{conn: conn}, ended: !writable,
	}
	go func() {
		defer close(s.done)
		s.run(ctx, *m.Offset)
	}()
	return s, nil
}

// awaitStart reads the message that tells of the start, or why there is none.
func awaitStart(ctx context.Context, conn *websocket.Conn) (api.ExecMessage, error) {
	kind, text, err := conn.Read(ctx)
	if err != nil {
		return api.ExecMessage{}, fmt.Errorf("the connection broke before the command was known to run: %w", err)
	}
	var m api.ExecMessage
	if kind != websocket.MessageText || json.Unmarshal(text, &m) != nil {
		return m, errors.New("cannot read the server's first message")
	}
	if m.Type == api.ExecError {
		return m, messageError(m)
	}
	if m.Type != api.ExecStarted || m.Exec == nil || m.Offset == nil {
		return m, fmt.Errorf("the server began with %q", m.Type)
	}
	return m, nil
}

func messageError(m api.ExecMessage) error {
	return &Error{Problem: api.Problem{Error: m.Error, Detail: m.Error, Code: m.Code, Hint: m.Hint}}
}

// Exec returns the command as it was when the session began.
func (s *ExecSession) Exec() api.Exec { return s.exec }

// Next waits for what the command says next. After the one with Exit it
// returns io.EOF.
func (s *ExecSession) Next() (ExecOutput, error) {
	if next, more := <-s.output; more {
		return next, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		return ExecOutput{}, s.fault
	}
	return ExecOutput{}, io.EOF
}

// LostError tells that a command has ended, and that not all of its output
// came.
type LostError struct {
	Bytes int64
}

// Error returns the sentence.
func (e *LostError) Error() string {
	return fmt.Sprintf("%d bytes of output were lost: the guest kept no more", e.Bytes)
}

// Copy writes what the command says to stdout and stderr until it ends. Output
// that the guest did not keep is a [*LostError], beside the exit.
func (s *ExecSession) Copy(stdout, stderr io.Writer) (ExecExit, error) {
	lost := int64(0)
	for {
		next, err := s.Next()
		if err != nil {
			return ExecExit{}, err
		}
		if next.Exit != nil {
			if lost > 0 {
				err = &LostError{lost}
			}
			return *next.Exit, err
		}
		lost += next.Lost
		to := stdout
		if next.Stderr {
			to = stderr
		}
		if _, err := to.Write(next.Data); err != nil {
			return ExecExit{}, err
		}
	}
}

// ErrStdinClosed is what a write ends with when the command reads no more.
var ErrStdinClosed = errors.New("the command reads no more input")

// Write writes to the command's stdin. It waits while the command does not
// read, and while there is no connection. Input that was under way when a
// connection broke may have been lost; then nothing more can be written, but to
// a terminal.
func (s *ExecSession) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), stdinMessage)]
		link, err := s.room(len(piece))
		if err != nil {
			return n, err
		}
		message := append([]byte{api.ChannelStdin}, piece...)
		_ = link.conn.Write(context.Background(), websocket.MessageBinary, message) // the reader notices a broken connection
		n, p = n+len(piece), p[len(piece):]
	}
	return n, nil
}

// room waits until a message of size bytes may be sent, and counts it.
func (s *ExecSession) room(size int) (*link, error) {
	for {
		s.mu.Lock()
		l, changed := s.link, s.changed
		switch {
		case s.input != nil:
			s.mu.Unlock()
			return nil, s.input
		case s.ended:
			s.mu.Unlock()
			return nil, ErrStdinClosed
		case l != nil && len(l.unsent) < stdinUnderWay:
			l.unsent = append(l.unsent, size)
			s.mu.Unlock()
			return l, nil
		}
		s.mu.Unlock()
		<-changed
	}
}

// CloseStdin ends the command's input after what was written.
func (s *ExecSession) CloseStdin() error {
	s.mu.Lock()
	l, err := s.link, s.input
	again := s.ended
	s.ended = true
	s.mu.Unlock()
	if err == nil && l != nil && !again {
		l.closeStdin() // when the connection breaks, the next one says it again
	}
	return err
}

func (l *link) closeStdin() {
	text, _ := json.Marshal(api.ExecMessage{Type: api.ExecCloseStdin})
	_ = l.conn.Write(context.Background(), websocket.MessageText, text)
}

// Signal sends a signal, by name or number, to the command and all it started.
func (s *ExecSession) Signal(ctx context.Context, signal string) error {
	return s.c.SignalExec(ctx, s.vmID, s.exec.ID, signal)
}

// Resize changes the size of the command's terminal.
func (s *ExecSession) Resize(ctx context.Context, size api.TerminalSize) error {
	return s.c.ResizeExec(ctx, s.vmID, s.exec.ID, size)
}

// Close leaves the command, which goes on.
func (s *ExecSession) Close() error {
	s.cancel()
	<-s.done
	return nil
}
