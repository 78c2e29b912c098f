package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

const streamExecText = `Run a command in a running VM over a WebSocket. A sleeping VM is woken first. The first message is text: the body of POST /vms/{id}/exec, with stdin_open if input follows.

After it, a binary message is a channel (first byte: 0 stdin, 1 stdout, 2 stderr) followed by its data, and a text message is an ExecMessage: started, output_lost, stdin_taken, stdin_closed, error and, last, exit from the server; resize, signal, close_stdin, close_stdout and close_stderr from the client. close_stdout is what closing the reading end of a pipe is: the command gets SIGPIPE if it writes more, and a terminal is hung up. An error does not end the exec; if the connection is closed after one, the client can attach again.

The command continues to run when the connection ends; GET /vms/{id}/execs/{exec_id}/attach attaches to it again. The current offset is that of started, plus the bytes of stdout and stderr received since (without the channel bytes), plus the bytes of each output_lost.`

const attachExecText = `Attach to an exec over a WebSocket, with the messages of GET /vms/{id}/exec except its first. Output starts at ` + "`from`" + `; output_lost reports bytes that are no longer kept. Any number of clients may attach. A sleeping VM is not woken.`

// Limits of a streamed exec.
const (
	maxExecMessage      = 1 << 20  // bytes of a message from the client
	smallMessage        = 32 << 10 // bytes that do not count as a body
	firstMessageTimeout = 30 * time.Second
	finalTimeout        = 10 * time.Second // for the final messages to a client that may have disconnected
)

func (h *execHandlers) stream(_ context.Context, in *IDPath) (*huma.StreamResponse, error) {
	return h.upgraded(func(w http.ResponseWriter, r *http.Request) error {
		var conn *websocket.Conn
		var first firstInput
		first.free = func() {}
		defer func() { first.free() }()
		answered := false                         // websocket.Accept has responded
		ctx := context.WithoutCancel(r.Context()) // cancelling it would cut the connection without a close frame
		stream, err := h.processes.Open(r.Context(), scope(ctx), in.ID, func() (spec process.Spec, err error) {
			if err := h.checkUpgrade(r); err != nil {
				return spec, err
			}
			answered = true
			if conn, err = websocket.Accept(w, r, originChecked); err != nil {
				return spec, err
			}
			conn.SetReadLimit(maxExecMessage)
			defer context.AfterFunc(r.Context(), func() { _ = conn.Close(websocket.StatusGoingAway, "") })()
			spec, first, err = h.firstSpec(ctx, conn)
			return spec, err
		})
		switch {
		case err == nil:
			s := &execStream{door: h.door, conn: conn, stream: stream, stdin: make(chan stdinData, 1)}
			s.serve(r.Context(), first)
		case !answered:
			return err
		case conn != nil:
			refuse(ctx, conn, h.problemOf(ctx, err))
		}
		return nil
	}), nil
}

// firstSpec reads the command and its initial input from the first message.
func (h *execHandlers) firstSpec(ctx context.Context, conn *websocket.Conn) (process.Spec, firstInput, error) {
	body, free, err := h.firstMessage(ctx, conn)
	first := firstInput{free: free}
	if err != nil {
		return process.Spec{}, first, err
	}
	spec, input, err := execSpec(body)
	if err != nil {
		return process.Spec{}, first, err
	}
	if body.Background {
		return process.Spec{}, first, errs.InvalidField("background", "is for POST only; a command started here continues to run in any case")
	}
	first.data, first.end = input, !spec.Stdin && len(input) > 0
	spec.Stdin = spec.Stdin || first.end
	return spec, first, nil
}

// firstInput is the stdin of a command that the first message has.
type firstInput struct {
	data []byte
	end  bool   // stdin ends after data
	free func() // to be called once data is not needed any more, at least once
}

func (h *execHandlers) firstMessage(ctx context.Context, conn *websocket.Conn) (body api.RunExec, free func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, firstMessageTimeout)
	defer cancel()
	kind, text, free, err := h.readMessage(ctx, conn)
	if _, ours := errs.As(err); ours {
		return body, free, err
	}
	if err != nil {
		return body, free, errs.New(errs.Invalid, "first_message_missing", "the first message, with the command, did not arrive").WithCause(err)
	}
	if kind != websocket.MessageText {
		return body, free, errs.New(errs.Invalid, "invalid_message", "the first message must be text: the command to run")
	}
	return body, free, h.decodeText(text, &body)
}

// readMessage reads a message of a client. A large one takes memory as a body does, until
// free is called, which may be called again. Errors: takeBytes's, and the connection's.
func (d *door) readMessage(ctx context.Context, conn *websocket.Conn) (kind websocket.MessageType, message []byte, free func(), err error) {
	free = func() {}
	kind, from, err := conn.Reader(ctx)
	if err != nil {
		return kind, nil, free, err
	}
	var read bytes.Buffer
	if _, err := io.CopyN(&read, from, smallMessage); errors.Is(err, io.EOF) {
		return kind, read.Bytes(), free, nil
	} else if err != nil {
		return kind, nil, free, err
	}
	keep, err := d.takeBytes(ctx, maxExecMessage)
	if err != nil {
		return kind, nil, free, err
	}
	if _, err := read.ReadFrom(from); err != nil {
		keep(0)
		return kind, nil, free, err
	}
	keep(int64(read.Len()))
	return kind, read.Bytes(), func() { keep(0) }, nil
}

// decodeText decodes a WebSocket message with the checks of a request body of the same
// type.
func (d *door) decodeText(text []byte, into any) error {
	var value any
	if err := jsonFormat.Unmarshal(text, &value); err != nil {
		return &invalidBody{[]error{&huma.ErrorDetail{Location: "body", Message: err.Error()}}}
	}
	result := &huma.ValidateResult{}
	schema := d.schemas.Schema(reflect.TypeOf(into).Elem(), true, "")
	huma.Validate(d.schemas, schema, huma.NewPathBuffer([]byte("body"), len("body")), huma.ModeWriteToServer, value, result)
	if len(result.Errors) > 0 {
		return &invalidBody{result.Errors}
	}
	if err := jsonFormat.Unmarshal(text, into); err != nil {
		return &invalidBody{[]error{&huma.ErrorDetail{Location: "body", Message: err.Error()}}}
	}
	return nil
}

// refuse sends the error for which no command was started, and closes the connection.
func refuse(ctx context.Context, conn *websocket.Conn, p *problem) {
	ctx, cancel := context.WithTimeout(ctx, finalTimeout)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, textOf(errorMessage(p))) // an error means that the client has disconnected
	_ = conn.Close(websocket.StatusPolicyViolation, "")
}

func errorMessage(p *problem) api.ExecMessage {
	return api.ExecMessage{Type: api.ExecError, Error: p.Problem.Error, Code: p.Code, Hint: p.Hint}
}

func textOf(m api.ExecMessage) []byte { return must(json.Marshal(m)) }

type attachExecInput struct {
	ExecPath
	From int64 `query:"from" minimum:"0" doc:"Offset in the output to start at; 0 is the beginning."`
}

func (h *execHandlers) attach(_ context.Context, in *attachExecInput) (*huma.StreamResponse, error) {
	return h.upgraded(func(w http.ResponseWriter, r *http.Request) error {
		stream, err := h.processes.Attach(context.WithoutCancel(r.Context()), scope(r.Context()), in.ID, in.ExecID, in.From)
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		if err := h.checkUpgrade(r); err != nil {
			return err
		}
		conn, err := websocket.Accept(w, r, originChecked)
		if err != nil { // Accept has responded
			return nil
		}
		conn.SetReadLimit(maxExecMessage)
		s := &execStream{door: h.door, conn: conn, stream: stream, stdin: make(chan stdinData, 1), offset: in.From}
		s.serve(r.Context(), firstInput{free: func() {}})
		return nil
	}), nil
}

// execStream connects a WebSocket to a process.
type execStream struct {
	door   *door
	conn   *websocket.Conn
	stream process.Stream
	offset int64 // at which the output starts
	// Data for stdin, nil for its end. One message is being written and one is
	// queued: text messages of a client with at most two unconfirmed ones are
	// never delayed.
	stdin   chan stdinData
	blocked atomic.Int32 // number of goroutines that wait for the client or for the process
}

// stdinData is data for stdin, nil for its end. free is as that of readMessage.
type stdinData struct {
	data []byte
	free func()
}

// serve copies in both directions until either side ends. It does not cancel the
// pending read from the client before the close frame: that would cut the connection.
func (s *execStream) serve(request context.Context, first firstInput) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(request))
	var once sync.Once
	end := func(status websocket.StatusCode) {
		once.Do(func() {
			_ = s.stream.Close()
			_ = s.conn.Close(status, "")
			cancel()
		})
	}
	stop := context.AfterFunc(request, func() { end(websocket.StatusGoingAway) })
	var goroutines sync.WaitGroup
	goroutines.Go(func() { end(s.output(ctx)) })
	goroutines.Go(func() { end(s.input(ctx)) })
	goroutines.Go(func() { s.writeStdin(ctx, first) })
	goroutines.Go(func() {
		ping(ctx, s.conn, func() bool { return s.blocked.Load() > 0 })
		end(websocket.StatusPolicyViolation)
	})
	goroutines.Wait()
	stop()
	select {
	case left := <-s.stdin:
		left.free()
	default:
	}
}

// output sends the output of the process to the client, and returns the status to
// close the connection with.
func (s *execStream) output(ctx context.Context) websocket.StatusCode {
	exec := shownExec(s.stream.Process())
	err := s.send(ctx, api.ExecMessage{Type: api.ExecStarted, Exec: &exec, Offset: &s.offset})
	var message []byte
	for err == nil {
		chunk, failure := s.stream.Next()
		switch {
		case failure != nil:
			s.sendError(ctx, failure)
			return websocket.StatusTryAgainLater
		case chunk.Exit != nil:
			e := chunk.Exit // a client that has disconnected can attach again
			_ = s.send(ctx, api.ExecMessage{Type: api.ExecEnded, ExitCode: &e.Code, Signal: e.Signal, TimedOut: e.TimedOut})
			return websocket.StatusNormalClosure
		case chunk.Lost > 0:
			err = s.send(ctx, api.ExecMessage{Type: api.ExecOutputLost, Bytes: chunk.Lost})
		default:
			message = append(append(message[:0], channelOf(chunk.Channel)), chunk.Data...)
			err = s.write(ctx, websocket.MessageBinary, message)
		}
	}
	return websocket.StatusNormalClosure // the client has disconnected
}

// write blocks until the client reads, without a timeout: the process blocks, too, as
// if the reader of a pipe were slow.
func (s *execStream) write(ctx context.Context, kind websocket.MessageType, message []byte) error {
	s.blocked.Add(1)
	defer s.blocked.Add(-1)
	return s.conn.Write(ctx, kind, message)
}

func (s *execStream) send(ctx context.Context, m api.ExecMessage) error {
	return s.write(ctx, websocket.MessageText, textOf(m))
}

func channelOf(c process.Channel) byte {
	if c == process.Stderr {
		return api.ChannelStderr
	}
	return api.ChannelStdout
}

// sendError sends an error to the client.
func (s *execStream) sendError(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(ctx, finalTimeout)
	defer cancel()
	_ = s.send(ctx, errorMessage(s.door.problemOf(ctx, err))) // as in refuse
}

// input handles messages of the client until it disconnects or sends an invalid one,
// and returns the status to close the connection with.
func (s *execStream) input(ctx context.Context) websocket.StatusCode {
	for {
		kind, message, free, err := s.door.readMessage(ctx, s.conn)
		if _, ours := errs.As(err); ours {
			s.sendError(ctx, err)
			return websocket.StatusTryAgainLater
		}
		if err != nil {
			return websocket.StatusNormalClosure
		}
		var data []byte
		switch {
		case kind == websocket.MessageText:
			free()
			end, err := s.handleText(ctx, message)
			if err != nil {
				s.sendError(ctx, err)
				return websocket.StatusPolicyViolation
			}
			if !end {
				continue
			}
		case len(message) == 0 || message[0] != api.ChannelStdin:
			free()
			s.sendError(ctx, errs.New(errs.Invalid, "invalid_message", "a binary message must begin with the byte 0, for stdin"))
			return websocket.StatusPolicyViolation
		default:
			data = message[1:]
		}
		if !s.queueStdin(ctx, stdinData{data, free}) {
			free()
			return websocket.StatusNormalClosure
		}
	}
}

// queueStdin queues data for writeStdin, nil for the end of stdin. It returns false if
// ctx is done.
func (s *execStream) queueStdin(ctx context.Context, data stdinData) bool {
	s.blocked.Add(1)
	defer s.blocked.Add(-1)
	select {
	case s.stdin <- data:
		return true
	case <-ctx.Done():
		return false
	}
}

// handleText executes a text message. If the process refuses it, the client gets an
// error message and the exec continues. endStdin reports whether stdin is to be closed.
func (s *execStream) handleText(ctx context.Context, text []byte) (endStdin bool, err error) {
	var m api.ExecMessage
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return false, errs.New(errs.Invalid, "invalid_message", "a text message must be an ExecMessage in JSON").WithCause(err)
	}
	switch m.Type {
	case api.ExecResize:
		err = s.stream.Resize(terminalSize(api.TerminalSize{Rows: m.Rows, Cols: m.Cols}))
	case api.ExecSignal:
		err = s.stream.Signal(m.Signal)
	case api.ExecCloseStdin:
		return true, nil
	case api.ExecCloseStdout:
		err = s.stream.CloseOutput(process.Stdout)
	case api.ExecCloseStderr:
		err = s.stream.CloseOutput(process.Stderr)
	default:
		return false, errs.New(errs.Invalid, "invalid_message", "%q is not a client message: want resize, signal, close_stdin, close_stdout or close_stderr", errs.Brief(m.Type))
	}
	if err != nil {
		s.sendError(ctx, err)
	}
	return false, nil
}

// writeStdin writes queued data to the process and confirms it to the client.
func (s *execStream) writeStdin(ctx context.Context, first firstInput) {
	closed := !s.writeChunk(ctx, first.data)
	first.free()
	if first.end {
		_ = s.stream.CloseStdin()
	}
	for taken := int64(0); ; {
		select {
		case queued := <-s.stdin:
			switch {
			case closed:
			case queued.data == nil:
				_ = s.stream.CloseStdin() // fails only if the process has ended, which output reports
			case s.writeChunk(ctx, queued.data):
				taken += int64(len(queued.data))
				_ = s.send(ctx, api.ExecMessage{Type: api.ExecStdinTaken, Bytes: taken})
			default:
				closed = true
			}
			queued.free()
		case <-ctx.Done():
			return
		}
	}
}

// writeChunk writes to stdin and reports to the client if stdin is closed. Any other
// failure also ends the output, which reports it.
func (s *execStream) writeChunk(ctx context.Context, data []byte) bool {
	if len(data) == 0 {
		return true
	}
	_, err := s.stream.Write(data)
	if errs.HasCode(err, "stdin_closed") {
		_ = s.send(ctx, api.ExecMessage{Type: api.ExecStdinClosed})
	}
	return err == nil
}
