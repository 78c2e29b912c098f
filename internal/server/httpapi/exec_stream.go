package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
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

const streamExecText = `Run a command in a running VM over a WebSocket. A VM that sleeps is woken first. The first message is text: the body of POST /vms/{id}/exec, with stdin_open when input follows.

From then on a binary message is a channel (first byte: 0 stdin, 1 stdout, 2 stderr) and its bytes, and a text message is an ExecMessage: from the server started, output_lost, stdin_taken, stdin_closed, error and, last, exit; from the client resize, signal and close_stdin. An error does not end the exec; when the connection ends after one, it can be attached to again.

The command goes on when the connection ends, and GET /vms/{id}/execs/{exec_id}/attach joins it again. Its offset is that of started, and one more for each byte of stdout and stderr since (channels not counted), and the bytes of each output_lost.`

const attachExecText = `Join an exec over a WebSocket, with the messages of GET /vms/{id}/exec but its first. Output comes from the offset on, as far as the guest keeps it, and what is not kept is told. Any number of callers may join. A VM that sleeps is not woken for it.`

// Bounds of a streamed exec.
const (
	maxExecMessage    = 1 << 20 // bytes of a message from the client
	firstMessageLimit = 30 * time.Second
	goodbyeLimit      = 10 * time.Second // for the last words to a client that may be gone
)

func (d *door) streamExec(ctx context.Context, in *IDPath) (*huma.StreamResponse, error) {
	if err := d.Processes.Reach(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return d.upgraded(func(w http.ResponseWriter, r *http.Request) error {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil { // Accept has answered
			return nil
		}
		conn.SetReadLimit(maxExecMessage)
		ctx := context.WithoutCancel(r.Context()) // which would cut the connection, not end it
		body, stream, err := d.begin(ctx, conn, in.ID)
		if err != nil {
			refuse(ctx, conn, d.problemOf(ctx, err))
			return nil
		}
		s := &execStream{door: d, conn: conn, stream: stream, stdin: make(chan []byte, 1)}
		s.serve(r.Context(), body)
		return nil
	}), nil
}

// begin reads the first message and starts what it asks for.
func (d *door) begin(ctx context.Context, conn *websocket.Conn, vmID string) (firstInput, process.Stream, error) {
	body, err := d.firstMessage(ctx, conn)
	if err != nil {
		return firstInput{}, nil, err
	}
	spec, input, err := execSpec(body)
	if err != nil {
		return firstInput{}, nil, err
	}
	if body.Background {
		return firstInput{}, nil, errs.InvalidField("background", "it is for POST; what is started here goes on anyway")
	}
	first := firstInput{data: input, end: !spec.Stdin && len(input) > 0}
	spec.Stdin = spec.Stdin || first.end
	stream, err := d.Processes.Open(ctx, owner(ctx), vmID, spec)
	return first, stream, err
}

// firstInput is what a command reads before anything the client sends later.
type firstInput struct {
	data []byte
	end  bool // stdin ends after data
}

func (d *door) firstMessage(ctx context.Context, conn *websocket.Conn) (api.RunExec, error) {
	var body api.RunExec
	ctx, cancel := context.WithTimeout(ctx, firstMessageLimit)
	defer cancel()
	kind, text, err := conn.Read(ctx)
	if err != nil {
		return body, errs.New(errs.Invalid, "first_message_missing", "the message that says what to run did not come").WithCause(err)
	}
	if kind != websocket.MessageText {
		return body, errs.New(errs.Invalid, "invalid_message", "the first message must be text: it says what to run")
	}
	return body, d.decodeText(text, &body)
}

// decodeText decodes what came over a WebSocket as a body of the same type is
// decoded, with the same checks.
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

// refuse tells why nothing was started, and closes.
func refuse(ctx context.Context, conn *websocket.Conn, p *problem) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeLimit)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, textOf(errorMessage(p))) // a client that has gone need not know
	_ = conn.Close(websocket.StatusPolicyViolation, "")
}

func errorMessage(p *problem) api.ExecMessage {
	return api.ExecMessage{Type: api.ExecError, Error: p.Problem.Error, Code: p.Code, Hint: p.Hint}
}

func textOf(m api.ExecMessage) []byte { return must(json.Marshal(m)) }

type attachExecInput struct {
	ExecPath
	From int64 `query:"from" minimum:"0" doc:"The offset in its output to begin at; 0 is its beginning."`
}

func (d *door) attachExec(ctx context.Context, in *attachExecInput) (*huma.StreamResponse, error) {
	if _, err := d.Processes.Get(ctx, owner(ctx), in.ID, in.ExecID); err != nil {
		return nil, err
	}
	return d.upgraded(func(w http.ResponseWriter, r *http.Request) error {
		stream, err := d.Processes.Attach(context.WithoutCancel(r.Context()), owner(r.Context()), in.ID, in.ExecID, in.From)
		if err != nil {
			return err
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil { // Accept has answered
			_ = stream.Close()
			return nil
		}
		conn.SetReadLimit(maxExecMessage)
		s := &execStream{door: d, conn: conn, stream: stream, stdin: make(chan []byte, 1), offset: in.From}
		s.serve(r.Context(), firstInput{})
		return nil
	}), nil
}

// execStream joins a WebSocket with a process.
type execStream struct {
	door   *door
	conn   *websocket.Conn
	stream process.Stream
	offset int64 // where its output begins
	// What comes for stdin, nil for its end. One message is on its way and one
	// waits: a client that has no more than two under way is always heard.
	stdin  chan []byte
	behind atomic.Int32 // sides that wait for the client, or for the process
}

// serve goes on until a side ends. Nothing cancels a read of the client under
// way before the close frame: that would cut the connection.
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
	var sides sync.WaitGroup
	sides.Go(func() { end(s.output(ctx)) })
	sides.Go(func() { end(s.input(ctx)) })
	sides.Go(func() { s.feed(ctx, first) })
	sides.Go(func() {
		ping(ctx, s.conn, func() bool { return s.behind.Load() > 0 })
		end(websocket.StatusPolicyViolation)
	})
	sides.Wait()
	stop()
}

// output passes on what the process says, and returns with what to close.
func (s *execStream) output(ctx context.Context) websocket.StatusCode {
	exec := shownExec(s.stream.Process())
	err := s.say(ctx, api.ExecMessage{Type: api.ExecStarted, Exec: &exec, Offset: &s.offset})
	var message []byte
	for err == nil {
		chunk, fault := s.stream.Next()
		switch {
		case fault != nil:
			s.tell(ctx, fault)
			return websocket.StatusTryAgainLater
		case chunk.Exit != nil:
			e := chunk.Exit // a client that has gone can attach again
			_ = s.say(ctx, api.ExecMessage{Type: api.ExecEnded, ExitCode: &e.Code, Signal: e.Signal, TimedOut: e.TimedOut})
			return websocket.StatusNormalClosure
		case chunk.Lost > 0:
			err = s.say(ctx, api.ExecMessage{Type: api.ExecOutputLost, Bytes: chunk.Lost})
		default:
			message = append(append(message[:0], channelOf(chunk.Channel)), chunk.Data...)
			err = s.write(ctx, websocket.MessageBinary, message)
		}
	}
	return websocket.StatusNormalClosure // the client has gone
}

// write waits for the client, who may be behind for as long as it likes: the
// process waits, too, as for a pipe's reader.
func (s *execStream) write(ctx context.Context, kind websocket.MessageType, message []byte) error {
	s.behind.Add(1)
	defer s.behind.Add(-1)
	return s.conn.Write(ctx, kind, message)
}

func (s *execStream) say(ctx context.Context, m api.ExecMessage) error {
	return s.write(ctx, websocket.MessageText, textOf(m))
}

func channelOf(c process.Channel) byte {
	if c == process.Stderr {
		return api.ChannelStderr
	}
	return api.ChannelStdout
}

// tell tells the client of an error.
func (s *execStream) tell(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeLimit)
	defer cancel()
	_ = s.say(ctx, errorMessage(s.door.problemOf(ctx, err))) // as refuse
}

// input obeys the client until it leaves, or says what cannot be understood.
func (s *execStream) input(ctx context.Context) websocket.StatusCode {
	for {
		kind, message, err := s.conn.Read(ctx)
		if err != nil {
			return websocket.StatusNormalClosure
		}
		var data []byte
		switch {
		case kind == websocket.MessageText:
			end, err := s.obey(ctx, message)
			if err != nil {
				s.tell(ctx, err)
				return websocket.StatusPolicyViolation
			}
			if !end {
				continue
			}
		case len(message) == 0 || message[0] != api.ChannelStdin:
			s.tell(ctx, errs.New(errs.Invalid, "invalid_message", "a binary message must begin with the byte 0, for stdin"))
			return websocket.StatusPolicyViolation
		default:
			data = message[1:]
		}
		if !s.hand(ctx, data) {
			return websocket.StatusNormalClosure
		}
	}
}

// hand gives data, nil for its end, to the side that writes to stdin.
func (s *execStream) hand(ctx context.Context, data []byte) bool {
	s.behind.Add(1)
	defer s.behind.Add(-1)
	select {
	case s.stdin <- data:
		return true
	case <-ctx.Done():
		return false
	}
}

// obey does what a text message says. What the process refuses is told, and
// ends nothing. It returns whether stdin shall end.
func (s *execStream) obey(ctx context.Context, text []byte) (endStdin bool, err error) {
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
	default:
		return false, errs.New(errs.Invalid, "invalid_message", "%q is not a message of a client; resize, signal and close_stdin are", errs.Brief(m.Type))
	}
	if err != nil {
		s.tell(ctx, err)
	}
	return false, nil
}

// feed writes to the process what comes for it, and tells the client how far.
func (s *execStream) feed(ctx context.Context, first firstInput) {
	closed := !s.put(ctx, first.data)
	if first.end {
		_ = s.stream.CloseStdin()
	}
	for taken := int64(0); ; {
		select {
		case data := <-s.stdin:
			switch {
			case closed:
			case data == nil:
				_ = s.stream.CloseStdin() // of one that has ended; its end is told
			case s.put(ctx, data):
				taken += int64(len(data))
				_ = s.say(ctx, api.ExecMessage{Type: api.ExecStdinTaken, Bytes: taken})
			default:
				closed = true
			}
		case <-ctx.Done():
			return
		}
	}
}

// put writes to stdin, and tells when it is closed. Any other failure ends the
// output, too, which tells of it.
func (s *execStream) put(ctx context.Context, data []byte) bool {
	if len(data) == 0 {
		return true
	}
	_, err := s.stream.Write(data)
	if errs.HasCode(err, "stdin_closed") {
		_ = s.say(ctx, api.ExecMessage{Type: api.ExecStdinClosed})
	}
	return err == nil
}
