package guest

import (
	"cmp"
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

// processTimeout is how long a request about a process waits for the agent's answer.
const processTimeout = 15 * time.Second

// Limits of an agent's description of a process.
const (
	maxPID     = 1 << 22 // Linux's highest
	maxSignal  = 16      // bytes of a signal's name
	maxMessage = 512     // bytes of an error
)

// processes implements [process.Guest].
type processes struct{ agent *connection }

// Exec implements [process.Starter].
func (p processes) Exec(ctx context.Context, spec process.Spec) (process.Stream, error) {
	client, err := p.agent.wait(ctx)
	if err != nil {
		return nil, err
	}
	wanted := wireSpec(spec)
	got, stream, err := client.Exec(ctx, wanted)
	if err != nil {
		return nil, processError(err)
	}
	return p.stream(stream, got, wanted.ID, 0)
}

// Attach implements [process.Starter].
func (p processes) Attach(ctx context.Context, id string, from int64) (process.Stream, error) {
	client, err := p.agent.wait(ctx)
	if err != nil {
		return nil, err
	}
	got, stream, err := client.AttachProcess(ctx, id, from)
	if err != nil {
		return nil, processError(err)
	}
	return p.stream(stream, got, id, from)
}

// StartProcess implements [process.Starter].
func (p processes) StartProcess(ctx context.Context, spec process.Spec) (process.Process, error) {
	wanted := wireSpec(spec)
	return p.requestProcess(ctx, wanted.ID, func(ctx context.Context, c *wire.Client) (wire.Process, error) {
		return c.StartProcess(ctx, wanted)
	})
}

// Process implements [process.Lister].
func (p processes) Process(ctx context.Context, id string) (process.Process, error) {
	return p.requestProcess(ctx, id, func(ctx context.Context, c *wire.Client) (wire.Process, error) { return c.Process(ctx, id) })
}

// Processes implements [process.Lister].
func (p processes) Processes(ctx context.Context) ([]process.Process, error) {
	var all []process.Process
	err := p.request(ctx, func(ctx context.Context, c *wire.Client) error {
		list, err := c.Processes(ctx)
		for _, got := range list {
			proc, invalid := checkProcess(got, got.Spec.ID)
			if invalid != nil {
				return invalid
			}
			all = append(all, proc)
		}
		return err
	})
	return all, err
}

// WriteStdin implements [process.Controller].
func (p processes) WriteStdin(ctx context.Context, id string, data []byte, end bool) error {
	client, err := p.agent.wait(ctx)
	if err != nil {
		return err
	}
	return processError(client.WriteProcess(ctx, id, data, end))
}

// SignalProcess implements [process.Controller].
func (p processes) SignalProcess(ctx context.Context, id, name string) error {
	return p.request(ctx, func(ctx context.Context, c *wire.Client) error { return c.SignalProcess(ctx, id, name) })
}

// ResizeProcess implements [process.Controller].
func (p processes) ResizeProcess(ctx context.Context, id string, size process.Size) error {
	return p.request(ctx, func(ctx context.Context, c *wire.Client) error { return c.ResizeProcess(ctx, id, wire.Terminal(size)) })
}

// RemoveProcess implements [process.Controller].
func (p processes) RemoveProcess(ctx context.Context, id string) error {
	return p.request(ctx, func(ctx context.Context, c *wire.Client) error { return c.RemoveProcess(ctx, id) })
}

// request makes a request that the agent answers at once.
func (p processes) request(ctx context.Context, do func(context.Context, *wire.Client) error) error {
	client, err := p.agent.wait(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, processTimeout)
	defer cancel()
	return processError(do(ctx, client))
}

// requestProcess makes a request that the agent answers with the process id.
func (p processes) requestProcess(ctx context.Context, id string, do func(context.Context, *wire.Client) (wire.Process, error)) (process.Process, error) {
	var proc process.Process
	err := p.request(ctx, func(ctx context.Context, c *wire.Client) error {
		got, err := do(ctx, c)
		if err == nil {
			proc, err = checkProcess(got, id)
		}
		return err
	})
	return proc, err
}

// stream validates the agent's answer to an attach, and returns the stream.
func (p processes) stream(stream *wire.ProcessStream, got wire.Process, id string, from int64) (process.Stream, error) {
	proc, err := checkProcess(got, id)
	if err == nil && from > proc.Output {
		err = errInvalidProcess
	}
	if err != nil {
		_ = stream.Close()
		return nil, processError(err)
	}
	return &processStream{processes: p, stream: stream, process: proc, offset: from}, nil
}

// processStream implements [process.Stream].
type processStream struct {
	processes processes
	stream    *wire.ProcessStream
	process   process.Process
	offset    int64 // of the next chunk
	ended     bool
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
		return process.Chunk{}, processError(err)
	}
	length := int64(len(got.Data)) + got.Lost
	if got.Lost > math.MaxInt64-s.offset || length > math.MaxInt64-s.offset {
		return process.Chunk{}, processError(errInvalidProcess)
	}
	s.offset += length
	c := process.Chunk{Channel: process.Stdout, Data: got.Data, Lost: got.Lost, Offset: s.offset}
	if got.Stderr {
		c.Channel = process.Stderr
	}
	if got.Exit != nil {
		s.ended = true
		if c.Exit, err = checkExit(got.Exit); err != nil {
			return process.Chunk{}, processError(err)
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
	return n, processError(err)
}

// CloseStdin implements [process.Stream].
func (s *processStream) CloseStdin() error {
	if !s.process.Spec.Stdin {
		return nil
	}
	return processError(s.stream.CloseStdin())
}

// CloseOutput implements [process.Stream]. Like those below it makes a request of its own:
// on the stream it would queue behind stdin.
func (s *processStream) CloseOutput(c process.Channel) error {
	return s.processes.request(context.Background(), func(ctx context.Context, agent *wire.Client) error {
		return agent.CloseProcessOutput(ctx, s.process.ID, c == process.Stderr)
	})
}

// Signal implements [process.Stream].
func (s *processStream) Signal(name string) error {
	return s.processes.SignalProcess(context.Background(), s.process.ID, name)
}

// Resize implements [process.Stream].
func (s *processStream) Resize(size process.Size) error {
	return s.processes.ResizeProcess(context.Background(), s.process.ID, size)
}

// Close implements [process.Stream].
func (s *processStream) Close() error { return s.stream.Close() }

func wireSpec(spec process.Spec) wire.ProcessSpec {
	return wire.ProcessSpec{
		ID: cmp.Or(spec.ID, id.New(process.IDPrefix)), Argv: spec.Argv, Shell: spec.Shell, Env: spec.Env, Dir: spec.Dir, User: spec.User,
		TTY: (*wire.Terminal)(spec.TTY), Stdin: spec.Stdin, Timeout: spec.Timeout, Tag: spec.Tag,
	}
}

var errInvalidProcess = errors.New("the agent sent invalid data of a process")

// checkProcess validates an agent's description of the process id, and makes it
// printable.
func checkProcess(got wire.Process, id string) (process.Process, error) {
	if !wire.ValidProcessID(got.Spec.ID) || got.Spec.ID != id || got.PID < 0 || got.PID > maxPID || got.Output < 0 || got.Spec.Timeout < 0 {
		return process.Process{}, errInvalidProcess
	}
	exit, err := checkExit(got.Exit)
	p := process.Process{
		ID: id, PID: got.PID, Spec: printableSpec(got.Spec), State: process.Running,
		StartedAt: time.Unix(0, got.StartedAt).UTC(), Exit: exit, Output: got.Output,
	}
	if exit != nil {
		p.State = process.Exited
	}
	return p, err
}

// printableSpec makes a spec printable, and cuts it to MaxCommand bytes, as hatch-agent
// does.
func printableSpec(got wire.ProcessSpec) process.Spec {
	left := wire.MaxCommand
	cut := func(text string) string {
		text = printable(text, left)
		left = max(0, left-len(text)-1)
		return text
	}
	spec := process.Spec{
		Tag: cut(got.Tag), Dir: cut(got.Dir), User: cut(got.User), Shell: cut(got.Shell),
		TTY: (*process.Size)(got.TTY), Stdin: got.Stdin, Timeout: got.Timeout,
	}
	for _, arg := range got.Argv {
		if left == 0 {
			break
		}
		spec.Argv = append(spec.Argv, cut(arg))
	}
	return spec
}

// checkExit validates the end of a process. It returns nil for nil: the process runs.
func checkExit(got *wire.ProcessExit) (*process.Exit, error) {
	if got == nil {
		return nil, nil
	}
	invalid := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }
	if got.Code < 0 || got.Code > 255 || len(got.Signal) > maxSignal || strings.ContainsFunc(got.Signal, invalid) {
		return nil, errInvalidProcess
	}
	return &process.Exit{Code: got.Code, Signal: got.Signal, TimedOut: got.TimedOut, At: time.Unix(0, got.At).UTC()}, nil
}

// processErrors translate the agent's codes. Their messages are the agent's.
var processErrors = map[string]struct {
	kind  errs.Kind
	field string
}{
	wire.CodeInvalid:       {errs.Invalid, ""},
	wire.CodeUser:          {errs.Invalid, "user"},
	wire.CodeDir:           {errs.Invalid, "cwd"},
	wire.CodeSignal:        {errs.Invalid, "signal"},
	wire.CodeOffset:        {errs.Invalid, "from"},
	wire.CodeNoProcess:     {errs.NotFound, ""},
	wire.CodeManyProcesses: {errs.TooMany, ""},
	wire.CodeEnded:         {errs.Conflict, ""},
	wire.CodeNoTerminal:    {errs.Conflict, ""},
}

// processError translates the error of a request about a process for the caller of the
// API.
func processError(err error) error {
	return requestError(err, func(answer *wire.RemoteError) error {
		message := printable(answer.Message, maxMessage)
		known, ok := processErrors[answer.Code]
		switch {
		case answer.Code == wire.CodeStdinClosed:
			return stdinClosed()
		case !ok:
			return errs.New(errs.Unavailable, "guest_failed", "the request failed in the guest: %s", message).WithCause(answer)
		case known.field != "":
			return errs.New(known.kind, answer.Code, "%s: %s", known.field, message).WithField(known.field)
		case answer.Code == wire.CodeInvalid:
			return errs.New(known.kind, "invalid_command", "%s", message)
		default:
			return errs.New(known.kind, answer.Code, "%s", message)
		}
	})
}

func stdinClosed() error {
	return errs.New(errs.Conflict, wire.CodeStdinClosed, "the stdin of the process is closed").
		WithHint("to write to a process, start it with stdin")
}
