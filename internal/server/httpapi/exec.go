package httpapi

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

const runExecText = `Run a command in a running VM, with or without a network in it, and answer with its output and exit code. A VM that sleeps is woken first.

A command that cannot be found or run is no error here: it exits with 127 or 126 and says why on stderr, as in a shell. When the caller leaves, the command and all it started are killed.

With background the answer is 201 and the exec, at once; the command goes on whoever leaves.`

// Processes is what can be done with processes in guests. [process.Service] is
// one.
type Processes interface {
	Reach(ctx context.Context, owner, vmID string) error
	Run(ctx context.Context, owner, vmID string, r process.Run) (process.Result, error)
	Start(ctx context.Context, owner, vmID string, spec process.Spec, input []byte) (process.Process, error)
	Open(ctx context.Context, owner, vmID string, spec process.Spec) (process.Stream, error)
	Attach(ctx context.Context, owner, vmID, id string, from int64) (process.Stream, error)
	StartedProcesses
}

// StartedProcesses is what can be done with processes that nobody waits for.
type StartedProcesses interface {
	List(ctx context.Context, owner, vmID string) ([]process.Process, error)
	Get(ctx context.Context, owner, vmID, id string) (process.Process, error)
	Remove(ctx context.Context, owner, vmID, id string) error
	Log(ctx context.Context, owner, vmID, id string, follow bool, w io.Writer) error
	Steering
}

// Steering is what can be told to a process.
type Steering interface {
	Signal(ctx context.Context, owner, vmID, id, signal string) error
	WriteStdin(ctx context.Context, owner, vmID, id string, data []byte, end bool) error
	Resize(ctx context.Context, owner, vmID, id string, size process.Size) error
}

type runExecInput struct {
	IDPath
	Body api.RunExec
}

// runExecOutput is an api.ExecResult or, for one in the background, an
// api.Exec.
type runExecOutput struct {
	Status   int
	Location string `header:"Location" doc:"The path of the exec; for one in the background."`
	Body     any
}

func (d *door) runExec(ctx context.Context, in *runExecInput) (*runExecOutput, error) {
	spec, input, err := execSpec(in.Body)
	if err != nil {
		return nil, err
	}
	if in.Body.Background {
		p, err := d.Processes.Start(ctx, owner(ctx), in.ID, spec, input)
		if err != nil {
			return nil, err
		}
		return &runExecOutput{Status: http.StatusCreated, Location: "/vms/" + in.ID + "/execs/" + p.ID, Body: shownExec(p)}, nil
	}
	if in.Body.StdinOpen {
		return nil, errs.InvalidField("stdin_open", "nothing more can be written to a command that is waited for").
			WithHint("give all of it as stdin, or run it in the background or over a WebSocket")
	}
	result, err := d.Processes.Run(ctx, owner(ctx), in.ID, process.Run{Spec: spec, Input: input, MaxOutput: in.Body.MaxOutputBytes})
	if err != nil {
		return nil, err
	}
	return &runExecOutput{Status: http.StatusOK, Body: execResult(result, in.Body.OutputEncoding)}, nil
}

// execSpec decodes what to run, and what it reads first.
func execSpec(b api.RunExec) (process.Spec, []byte, error) {
	input, err := decodeBytes("stdin", b.Stdin, b.StdinEncoding)
	spec := process.Spec{
		Argv: b.Command.Argv, Shell: b.Command.Shell, Env: b.Env, Dir: b.Cwd, User: b.User,
		Stdin: b.StdinOpen, Timeout: time.Duration(b.TimeoutMS) * time.Millisecond,
	}
	if b.TTY != nil {
		size := terminalSize(*b.TTY)
		spec.TTY = &size
	}
	return spec, input, err
}

// terminalSize is zero where a number is out of range, which the service
// refuses.
func terminalSize(s api.TerminalSize) process.Size {
	if s.Rows != int(uint16(s.Rows)) || s.Cols != int(uint16(s.Cols)) { //nolint:gosec // that is the question
		return process.Size{}
	}
	return process.Size{Rows: uint16(s.Rows), Cols: uint16(s.Cols)} //nolint:gosec // checked above
}

func decodeBytes(field, text, encoding string) ([]byte, error) {
	if encoding != api.EncodingBase64 {
		return []byte(text), nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errs.InvalidField(field, "it is not base64")
	}
	return b, nil
}

func execResult(r process.Result, encoding string) api.ExecResult {
	return api.ExecResult{
		ID: r.ID, Stdout: encodeOutput(r.Stdout, encoding), Stderr: encodeOutput(r.Stderr, encoding),
		ExitCode: r.Exit.Code, Signal: r.Exit.Signal, TimedOut: r.Exit.TimedOut,
		StdoutTruncated: r.Stdout.Truncated, StderrTruncated: r.Stderr.Truncated, DurationMS: r.Took.Milliseconds(),
	}
}

// encodeOutput never ends in a part of a letter that the limit cut.
func encodeOutput(o process.Output, encoding string) string {
	if encoding == api.EncodingBase64 {
		return base64.StdEncoding.EncodeToString(o.Data)
	}
	data := o.Data
	for back := 1; o.Truncated && back < utf8.UTFMax && back <= len(data); back++ {
		if at := len(data) - back; utf8.RuneStart(data[at]) {
			if !utf8.FullRune(data[at:]) {
				data = data[:at]
			}
			break
		}
	}
	return strings.ToValidUTF8(string(data), "\uFFFD")
}

// shownExec returns a process as its owner sees it.
func shownExec(p process.Process) api.Exec {
	out := api.Exec{
		ID: p.ID, Command: api.Command{Argv: p.Spec.Argv, Shell: p.Spec.Shell}, User: p.Spec.User, Cwd: p.Spec.Dir,
		State: string(p.State), PID: p.PID, StartedAt: utc(p.StartedAt), OutputBytes: p.Output,
	}
	if size := p.Spec.TTY; size != nil {
		out.TTY = &api.TerminalSize{Rows: int(size.Rows), Cols: int(size.Cols)}
	}
	if e := p.Exit; e != nil {
		out.EndedAt, out.ExitCode, out.Signal, out.TimedOut = utcOrNil(&e.At), &e.Code, e.Signal, e.TimedOut
	}
	return out
}

type listExecsOutput struct {
	Body []api.Exec `nullable:"false"`
}

func (d *door) listExecs(ctx context.Context, in *IDPath) (*listExecsOutput, error) {
	processes, err := d.Processes.List(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	out := &listExecsOutput{Body: make([]api.Exec, len(processes))}
	for i, p := range processes {
		out.Body[i] = shownExec(p)
	}
	return out, nil
}

// ExecPath is the input of routes about one exec. It is exported for huma.
type ExecPath struct {
	IDPath
	ExecID string `path:"exec_id" doc:"The exec's ID."`
}

func (d *door) getExec(ctx context.Context, in *ExecPath) (*answer[api.Exec], error) {
	p, err := d.Processes.Get(ctx, owner(ctx), in.ID, in.ExecID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Exec]{Body: shownExec(p)}, nil
}

func (d *door) deleteExec(ctx context.Context, in *ExecPath) (*answer[api.Deleted], error) {
	if err := d.Processes.Remove(ctx, owner(ctx), in.ID, in.ExecID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type signalExecInput struct {
	ExecPath
	Body api.SignalExec
}

func (d *door) signalExec(ctx context.Context, in *signalExecInput) (*answer[api.Done], error) {
	return done(d.Processes.Signal(ctx, owner(ctx), in.ID, in.ExecID, in.Body.Signal))
}

type writeExecInput struct {
	ExecPath
	Body api.ExecInput
}

func (d *door) writeExec(ctx context.Context, in *writeExecInput) (*answer[api.Done], error) {
	data, err := decodeBytes("data", in.Body.Data, in.Body.Encoding)
	if err != nil {
		return nil, err
	}
	return done(d.Processes.WriteStdin(ctx, owner(ctx), in.ID, in.ExecID, data, in.Body.Close))
}

type resizeExecInput struct {
	ExecPath
	Body api.TerminalSize
}

func (d *door) resizeExec(ctx context.Context, in *resizeExecInput) (*answer[api.Done], error) {
	return done(d.Processes.Resize(ctx, owner(ctx), in.ID, in.ExecID, terminalSize(in.Body)))
}

// done answers a call that has nothing to tell.
func done(err error) (*answer[api.Done], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Done]{Body: api.Done{Status: "ok"}}, nil
}

type execLogsInput struct {
	ExecPath
	Follow bool `query:"follow" doc:"Go on until the exec ends."`
}

func (d *door) execLogs(ctx context.Context, in *execLogsInput) (*huma.StreamResponse, error) {
	if _, err := d.Processes.Get(ctx, owner(ctx), in.ID, in.ExecID); err != nil {
		return nil, err
	}
	write := func(ctx context.Context, w io.Writer) error {
		return d.Processes.Log(ctx, owner(ctx), in.ID, in.ExecID, in.Follow, w)
	}
	if in.Follow {
		write = atOnce(write)
	}
	return d.textStream(in.Follow, write), nil
}
