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
	stdinMessage = 64 << 10 // bytes of a message of stdin
	stdinWindow  = 2        // messages of stdin that are not acknowledged
	outputBuffer = 32       // messages of output that are read before Next is called
	maxMessage   = 1 << 20  // bytes of a message from the server
)

// Bounds on attaching again after a connection broke.
const (
	minAttachRetry = 100 * time.Millisecond
	maxAttachRetry = 2 * time.Second
	attachTimeout  = 30 * time.Second // for all attempts
)

// ExecSession is a connection to a command in a VM. If it breaks, the session
// attaches again and continues where the output ended.
//
// One goroutine may read, and one may write, at a time. It must be closed.
type ExecSession struct {
	c    *Client
	vmID string
	exec api.Exec

	output chan ExecOutput // closed after the last
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced when a field below changes
	connection  *connection   // nil while disconnected
	inputErr    error         // why stdin cannot be written any more
	stdinClosed bool          // by CloseStdin
	unread      []string      // messages that close output, to be repeated when attaching again
	outputErr   error         // why there is no more output; nil after the exit
}

// connection is one WebSocket of a session.
type connection struct {
	conn       *websocket.Conn
	unacked    []int // lengths of the messages of stdin that are not acknowledged
	ackedBytes int64
}

// ExecOutput is one result of Next: output (Data), a gap in it (Lost), or the
// end (Exit).
type ExecOutput struct {
	Stderr bool
	Data   []byte
	Offset int64 // of the next output, in bytes of stdout and stderr; see AttachExec
	Lost   int64 // bytes that the guest did not keep, instead of Data
	Exit   *ExecExit
}

// ExecExit says how a command ended.
type ExecExit struct {
	Code     int    // as in a shell: 128+N for signal N, 127 not found, 126 not executable
	Signal   string // such as SIGKILL; "" if no signal ended it
	TimedOut bool
}

// OpenExec starts a command and attaches to it. Set body.StdinOpen to write to
// it. The command keeps running when the session is closed, or ctx is done.
func (c *Client) OpenExec(ctx context.Context, vmID string, body api.RunExec) (*ExecSession, error) {
	path, err := item(vms, vmID, "exec")
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return nil, err
	}
	first, err := json.Marshal(encodeCommand(body))
	if err == nil {
		err = conn.Write(ctx, websocket.MessageText, first)
	}
	if err != nil {
		_ = conn.CloseNow()
		return nil, fmt.Errorf("cannot send the command: %w", err)
	}
	return c.session(ctx, vmID, conn, body.StdinOpen)
}

// AttachExec attaches to a command. Its output begins at the offset from, in
// bytes; 0 is the beginning.
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

// session starts a session on a new connection, whose first message says how
// the command was started.
func (c *Client) session(ctx context.Context, vmID string, conn *websocket.Conn, writable bool) (*ExecSession, error) {
	conn.SetReadLimit(maxMessage)
	m, err := awaitStart(ctx, conn)
	if err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &ExecSession{
		c: c, vmID: vmID, exec: *m.Exec, output: make(chan ExecOutput, outputBuffer), cancel: cancel, done: make(chan struct{}),
		changed: make(chan struct{}), connection: &connection{conn: conn}, stdinClosed: !writable,
	}
	go func() {
		defer close(s.done)
		s.run(ctx, *m.Offset)
	}()
	return s, nil
}

// awaitStart reads the first message: the started command, or an error.
func awaitStart(ctx context.Context, conn *websocket.Conn) (api.ExecMessage, error) {
	kind, text, err := conn.Read(ctx)
	if err != nil {
		return api.ExecMessage{}, fmt.Errorf("the connection broke before the command was started: %w", err)
	}
	var m api.ExecMessage
	if kind != websocket.MessageText || json.Unmarshal(text, &m) != nil {
		return m, errors.New("cannot read the server's first message")
	}
	if m.Type == api.ExecError {
		return m, messageError(m)
	}
	if m.Type != api.ExecStarted || m.Exec == nil || m.Offset == nil {
		return m, fmt.Errorf("the first message of the server is %q", m.Type)
	}
	return m, nil
}

func messageError(m api.ExecMessage) error {
	return &Error{Problem: api.Problem{Error: m.Error, Detail: m.Error, Code: m.Code, Hint: m.Hint}}
}

// Exec returns the command as it was when the session began.
func (s *ExecSession) Exec() api.Exec { return s.exec }

// Next waits for the next output. After the one with Exit it returns io.EOF.
func (s *ExecSession) Next() (ExecOutput, error) {
	if next, more := <-s.output; more {
		return next, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outputErr != nil {
		return ExecOutput{}, s.outputErr
	}
	return ExecOutput{}, io.EOF
}

// LostError is the error of a command that has ended, and some of whose output
// was lost.
type LostError struct {
	Bytes int64
}

// Error returns the sentence.
func (e *LostError) Error() string {
	return fmt.Sprintf("%d bytes of output were lost: the guest did not keep them", e.Bytes)
}

// Copy copies the output of the command until it ends. If the guest did not keep
// all of it, Copy returns the exit and a [*LostError].
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

// ErrStdinClosed is the error of a write to a stdin that is closed.
var ErrStdinClosed = errors.New("the command reads no more input")

// Write writes to the command's stdin. It waits while the command does not read,
// and while the session is disconnected. Input that was not acknowledged when a
// connection broke may be lost; every later write fails then, unless the command
// has a terminal.
func (s *ExecSession) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), stdinMessage)]
		to, err := s.reserve(len(piece))
		if err != nil {
			return n, err
		}
		message := append([]byte{api.ChannelStdin}, piece...)
		_ = to.conn.Write(context.Background(), websocket.MessageBinary, message) // a broken connection fails the read in run
		n, p = n+len(piece), p[len(piece):]
	}
	return n, nil
}

// reserve waits until a message of size bytes may be sent, and counts it.
func (s *ExecSession) reserve(size int) (*connection, error) {
	for {
		s.mu.Lock()
		to, changed := s.connection, s.changed
		switch {
		case s.inputErr != nil:
			s.mu.Unlock()
			return nil, s.inputErr
		case s.stdinClosed:
			s.mu.Unlock()
			return nil, ErrStdinClosed
		case to != nil && len(to.unacked) < stdinWindow:
			to.unacked = append(to.unacked, size)
			s.mu.Unlock()
			return to, nil
		}
		s.mu.Unlock()
		<-changed
	}
}

// CloseStdin closes the command's stdin after the written input.
func (s *ExecSession) CloseStdin() error {
	s.mu.Lock()
	to, err := s.connection, s.inputErr
	again := s.stdinClosed
	s.stdinClosed = true
	s.mu.Unlock()
	if err == nil && to != nil && !again {
		to.say(api.ExecCloseStdin) // repeated on the next connection if this one breaks
	}
	return err
}

// CloseStdout closes the command's stdout, as the reader of a pipe would: a command that
// writes more to it gets SIGPIPE, and a terminal is hung up. Next still returns the
// output before, and then how the command ended, which it need not do.
func (s *ExecSession) CloseStdout() { s.closeOutput(api.ExecCloseStdout) }

// CloseStderr closes the command's stderr, likewise.
func (s *ExecSession) CloseStderr() { s.closeOutput(api.ExecCloseStderr) }

func (s *ExecSession) closeOutput(message string) {
	s.mu.Lock()
	to := s.connection
	s.unread = append(s.unread, message)
	s.mu.Unlock()
	if to != nil {
		to.say(message)
	}
}

// say sends a text message that has only a type. A broken connection fails the read in run.
func (c *connection) say(message string) {
	text, _ := json.Marshal(api.ExecMessage{Type: message})
	_ = c.conn.Write(context.Background(), websocket.MessageText, text)
}

// Signal sends a signal, by name or number, to the command and its children.
func (s *ExecSession) Signal(ctx context.Context, signal string) error {
	return s.c.SignalExec(ctx, s.vmID, s.exec.ID, signal)
}

// Resize changes the size of the command's terminal.
func (s *ExecSession) Resize(ctx context.Context, size api.TerminalSize) error {
	return s.c.ResizeExec(ctx, s.vmID, s.exec.ID, size)
}

// Close detaches from the command, which keeps running.
func (s *ExecSession) Close() error {
	s.cancel()
	<-s.done
	return nil
}
