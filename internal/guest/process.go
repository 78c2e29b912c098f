package guest

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/process"
)

var _ process.Guest = (*session)(nil)

// answerPatience is how long the agent may take for one answer about a process.
const answerPatience = 15 * time.Second

// Bounds of what a guest may say of a process.
const (
	maxPID     = 1 << 22 // of Linux
	maxSignal  = 16      // bytes of a signal's name
	maxMessage = 512     // bytes of a refusal
)

// Exec implements [process.Guest].
func (s *session) Exec(ctx context.Context, spec process.Spec) (process.Stream, error) {
	client, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	asked := wireSpec(spec)
	told, stream, err := client.Exec(ctx, asked)
	if err != nil {
		return nil, failure(err, refusal)
	}
	return attach(s, stream, told, asked.ID, 0)
}

// Attach implements [process.Guest].
func (s *session) Attach(ctx context.Context, id string, from int64) (process.Stream, error) {
	client, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	told, stream, err := client.AttachProcess(ctx, id, from)
	if err != nil {
		return nil, failure(err, refusal)
	}
	return attach(s, stream, told, id, from)
}

// StartProcess implements [process.Guest].
func (s *session) StartProcess(ctx context.Context, spec process.Spec) (process.Process, error) {
	asked := wireSpec(spec)
	return s.one(ctx, asked.ID, func(ctx context.Context, c *wire.Client) (wire.Process, error) { return c.StartProcess(ctx, asked) })
}

// Process implements [process.Guest].
func (s *session) Process(ctx context.Context, id string) (process.Process, error) {
	return s.one(ctx, id, func(ctx context.Context, c *wire.Client) (wire.Process, error) { return c.Process(ctx, id) })
}

// Processes implements [process.Guest].
func (s *session) Processes(ctx context.Context) ([]process.Process, error) {
	var all []process.Process
	err := s.ask(ctx, func(ctx context.Context, c *wire.Client) error {
		told, err := c.Processes(ctx)
		for _, t := range told {
			p, bad := processOf(t, t.Spec.ID)
			if bad != nil {
				return bad
			}
			all = append(all, p)
		}
		return err
	})
	return all, err
}

// WriteStdin implements [process.Guest].
func (s *session) WriteStdin(ctx context.Context, id string, data []byte, end bool) error {
	client, err := s.agent(ctx)
	if err != nil {
		return err
	}
	return failure(client.WriteProcess(ctx, id, data, end), refusal)
}

// SignalProcess implements [process.Guest].
func (s *session) SignalProcess(ctx context.Context, id, name string) error {
	return s.ask(ctx, func(ctx context.Context, c *wire.Client) error { return c.SignalProcess(ctx, id, name) })
}

// ResizeProcess implements [process.Guest].
func (s *session) ResizeProcess(ctx context.Context, id string, size process.Size) error {
	return s.ask(ctx, func(ctx context.Context, c *wire.Client) error { return c.ResizeProcess(ctx, id, wire.Terminal(size)) })
}

// RemoveProcess implements [process.Guest].
func (s *session) RemoveProcess(ctx context.Context, id string) error {
	return s.ask(ctx, func(ctx context.Context, c *wire.Client) error { return c.RemoveProcess(ctx, id) })
}

// ask asks the agent something that it answers at once.
func (s *session) ask(ctx context.Context, do func(context.Context, *wire.Client) error) error {
	client, err := s.agent(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	return failure(do(ctx, client), refusal)
}

// one is ask for a question that is answered with the process id.
func (s *session) one(ctx context.Context, id string, do func(context.Context, *wire.Client) (wire.Process, error)) (process.Process, error) {
	var p process.Process
	err := s.ask(ctx, func(ctx context.Context, c *wire.Client) error {
		told, err := do(ctx, c)
		if err == nil {
			p, err = processOf(told, id)
		}
		return err
	})
	return p, err
}

// processStream implements [process.Stream].
type processStream struct {
	session *session
	stream  *wire.ProcessStream
	process process.Process
	offset  int64 // of what comes next
	ended   bool
}

func attach(s *session, stream *wire.ProcessStream, told wire.Process, id string, from int64) (process.Stream, error) {
	p, err := processOf(told, id)
	if err == nil && from > p.Output {
		err = errNonsense
	}
	if err != nil {
		_ = stream.Close()
		return nil, failure(err, refusal)
	}
	return &processStream{session: s, stream: stream, process: p, offset: from}, nil
}

// Process implements [process.Stream].
func (s *processStream) Process() process.Process { return s.process }

// Next implements [process.Stream].
func (s *processStream) Next() (process.Chunk, error) {
	if s.ended {
		return process.Chunk{}, io.EOF
	}
	got, err := s.stream.Next()
	if err != nil {
		return process.Chunk{}, failure(err, refusal)
	}
	passed := int64(len(got.Data)) + got.Lost
	if got.Lost > math.MaxInt64-s.offset || passed > math.MaxInt64-s.offset {
		return process.Chunk{}, failure(errNonsense, refusal)
	}
	s.offset += passed
	c := process.Chunk{Channel: process.Stdout, Data: got.Data, Lost: got.Lost, Offset: s.offset}
	if got.Stderr {
		c.Channel = process.Stderr
	}
	if got.Exit != nil {
		s.ended = true
		if c.Exit, err = exitOf(got.Exit); err != nil {
			return process.Chunk{}, failure(err, refusal)
		}
	}
	return c, nil
}

// Write implements [process.Stream].
func (s *processStream) Write(p []byte) (int, error) {
	if !s.process.Spec.Stdin {
		return 0, stdinClosed()
	}
	n, err := s.stream.Write(p)
	return n, failure(err, refusal)
}

// CloseStdin implements [process.Stream].
func (s *processStream) CloseStdin() error {
	if !s.process.Spec.Stdin {
		return nil
	}
	return failure(s.stream.CloseStdin(), refusal)
}

// Signal implements [process.Stream]. It goes beside the stream, where no
// stdin is in front of it.
func (s *processStream) Signal(name string) error {
	return s.session.SignalProcess(context.Background(), s.process.ID, name)
}

// Resize implements [process.Stream].
func (s *processStream) Resize(size process.Size) error {
	return s.session.ResizeProcess(context.Background(), s.process.ID, size)
}

// Close implements [process.Stream].
func (s *processStream) Close() error { return s.stream.Close() }

func wireSpec(spec process.Spec) wire.ProcessSpec {
	return wire.ProcessSpec{
		ID: id.New("exec_"), Argv: spec.Argv, Shell: spec.Shell, Env: spec.Env, Dir: spec.Dir, User: spec.User,
		TTY: (*wire.Terminal)(spec.TTY), Stdin: spec.Stdin, Timeout: spec.Timeout,
	}
}

var errNonsense = errors.New("the agent says of a process what cannot be")

// processOf checks what a guest says of the process id, and makes it fit to be
// shown.
func processOf(told wire.Process, id string) (process.Process, error) {
	if !wire.ValidProcessID(told.Spec.ID) || told.Spec.ID != id || told.PID < 0 || told.PID > maxPID || told.Output < 0 || told.Spec.Timeout < 0 {
		return process.Process{}, errNonsense
	}
	exit, err := exitOf(told.Exit)
	p := process.Process{
		ID: id, PID: told.PID, Spec: specOf(told.Spec), State: process.Running,
		StartedAt: time.Unix(0, told.StartedAt).UTC(), Exit: exit, Output: told.Output,
	}
	if exit != nil {
		p.State = process.Exited
	}
	return p, err
}

// specOf makes a spec printable. It has as many bytes as an agent of ours
// tells, and a few for the ends of arguments.
func specOf(told wire.ProcessSpec) process.Spec {
	room := wire.MaxCommand
	cut := func(text string) string {
		text = printable(text, room)
		room = max(0, room-len(text)-1)
		return text
	}
	spec := process.Spec{
		Dir: cut(told.Dir), User: cut(told.User), Shell: cut(told.Shell),
		TTY: (*process.Size)(told.TTY), Stdin: told.Stdin, Timeout: told.Timeout,
	}
	for _, arg := range told.Argv {
		if room == 0 {
			break
		}
		spec.Argv = append(spec.Argv, cut(arg))
	}
	return spec
}

// exitOf checks how a process is said to have ended; nil stays nil.
func exitOf(told *wire.ProcessExit) (*process.Exit, error) {
	if told == nil {
		return nil, nil
	}
	strange := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }
	if told.Code < 0 || told.Code > 255 || len(told.Signal) > maxSignal || strings.ContainsFunc(told.Signal, strange) {
		return nil, errNonsense
	}
	return &process.Exit{Code: told.Code, Signal: told.Signal, TimedOut: told.TimedOut, At: time.Unix(0, told.At).UTC()}, nil
}

// refusals are the agent's codes in our words. What they say is the agent's.
var refusals = map[string]struct {
	kind  errs.Kind
	field string
}{
	wire.CodeInvalid:       {errs.Invalid, ""},
	wire.CodeUser:          {errs.Invalid, "user"},
	wire.CodeDir:           {errs.Invalid, "cwd"},
	wire.CodeSignal:        {errs.Invalid, "signal"},
	wire.CodeOffset:        {errs.Invalid, "from"},
	wire.CodeNoProcess:     {errs.NotFound, ""},
	wire.CodeManyProcesses: {errs.Exhausted, ""},
	wire.CodeEnded:         {errs.Conflict, ""},
	wire.CodeNoTerminal:    {errs.Conflict, ""},
}

// refusal is what the agent answered about a process, for the one who asked.
func refusal(answer *wire.RemoteError) error {
	message := printable(answer.Message, maxMessage)
	known, ok := refusals[answer.Code]
	switch {
	case answer.Code == wire.CodeStdinClosed:
		return stdinClosed()
	case !ok:
		return errs.New(errs.Unavailable, "guest_failed", "the guest could not do it: %s", message).WithCause(answer)
	case known.field != "":
		return errs.New(known.kind, answer.Code, "%s: %s", known.field, message).WithField(known.field)
	case answer.Code == wire.CodeInvalid:
		return errs.New(known.kind, "invalid_command", "%s", message)
	default:
		return errs.New(known.kind, answer.Code, "%s", message)
	}
}

func stdinClosed() error {
	return errs.New(errs.Conflict, wire.CodeStdinClosed, "the process reads nothing (more) from its stdin").
		WithHint("start it with stdin to be able to write to it")
}

// detached is for a reader that the agent has let go.
func detached(err error) error {
	return errs.New(errs.Unavailable, "detached", "the guest's agent let go of a reader that was too slow").
		WithHint("attach again where the output ended").WithCause(err)
}
