package httpapi

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

const runExecText = `Run a command in a running VM, with or without a network, and return its output and exit code. A sleeping VM is woken first.

A command that cannot be found or run is not an error here: it exits with 127 or 126 and a message on stderr, as in a shell. If the client disconnects, the command and its descendants are killed.

With background the response is 201 with the exec and comes at once; the command continues if the client disconnects.`

// Processes runs processes in guests. [process.Service] implements it.
type Processes interface {
	Run(ctx context.Context, scope access.Scope, vmID string, r process.Run) (process.Result, error)
	// Collect returns the result of a command that Run has started.
	Collect(ctx context.Context, scope access.Scope, vmID, id string, r process.Run) (process.Result, error)
	Start(ctx context.Context, scope access.Scope, vmID string, spec process.Spec, input []byte) (process.Process, error)
	Open(ctx context.Context, scope access.Scope, vmID string, spec func() (process.Spec, error)) (process.Stream, error)
	Attach(ctx context.Context, scope access.Scope, vmID, id string, from int64) (process.Stream, error)
	StartedProcesses
}

// StartedProcesses manages processes in the background.
type StartedProcesses interface {
	List(ctx context.Context, scope access.Scope, vmID string) ([]process.Process, error)
	Get(ctx context.Context, scope access.Scope, vmID, id string) (process.Process, error)
	Remove(ctx context.Context, scope access.Scope, vmID, id string) error
	Log(ctx context.Context, scope access.Scope, vmID, id string, follow bool, began func(), w io.Writer) error
	Steering
}

// Steering controls a process.
type Steering interface {
	Signal(ctx context.Context, scope access.Scope, vmID, id, signal string) error
	WriteStdin(ctx context.Context, scope access.Scope, vmID, id string, data []byte, end bool) error
	Resize(ctx context.Context, scope access.Scope, vmID, id string, size process.Size) error
}

// execHandlers serves the processes in VMs; exec_stream.go has their streams.
type execHandlers struct {
	*door
	processes Processes
}

type runExecInput struct {
	IDPath
	Body api.RunExec
}

// runExecOutput is an api.ExecResult or, for one in the background, an
// api.Exec.
type runExecOutput struct {
	Replay
	Status   int
	Location string `header:"Location" doc:"The path of the exec; for one in the background."`
	Body     any
}

func (h *execHandlers) run(ctx context.Context, in *runExecInput) (*runExecOutput, error) {
	spec, input, err := execSpec(in.Body)
	if err != nil {
		return nil, err
	}
	if in.Body.Background {
		p, err := h.processes.Start(ctx, scope(ctx), in.ID, spec, input)
		if err != nil {
			return nil, err
		}
		return &runExecOutput{Status: http.StatusCreated, Location: "/vms/" + in.ID + "/execs/" + p.ID, Body: shownExec(p)}, nil
	}
	if in.Body.StdinOpen {
		return nil, errs.InvalidField("stdin_open", "the request waits for the command, so no more input can be written to it").
			WithHint("give all of it as stdin, or run it in the background or over a WebSocket")
	}
	result, err := h.processes.Run(ctx, scope(ctx), in.ID, process.Run{Spec: spec, Input: input, MaxOutput: in.Body.MaxOutputBytes})
	if err != nil {
		return nil, err
	}
	return &runExecOutput{Status: http.StatusOK, Body: execResult(result, in.Body.OutputEncoding)}, nil
}

// replay answers with the command that an earlier request has started, or its result.
func (h *execHandlers) replay(ctx context.Context, in *runExecInput, made []string) (*runExecOutput, error) {
	if in.Body.Background {
		p, err := h.processes.Get(ctx, scope(ctx), in.ID, made[0])
		if err != nil {
			return nil, err
		}
		return &runExecOutput{Status: http.StatusCreated, Location: "/vms/" + in.ID + "/execs/" + p.ID, Body: shownExec(p)}, nil
	}
	result, err := h.processes.Collect(ctx, scope(ctx), in.ID, made[0], process.Run{MaxOutput: in.Body.MaxOutputBytes})
	if err != nil {
		return nil, err
	}
	return &runExecOutput{Status: http.StatusOK, Body: execResult(result, in.Body.OutputEncoding)}, nil
}

// execSpec decodes a command and its first input.
func execSpec(b api.RunExec) (process.Spec, []byte, error) {
	input, err := decodeBytes("stdin", b.Stdin, b.StdinEncoding)
	if err != nil {
		return process.Spec{}, nil, err
	}
	spec, err := commandSpec(b)
	spec.User, spec.Stdin, spec.Timeout = b.User, b.StdinOpen, time.Duration(b.TimeoutMS)*time.Millisecond
	if b.TTY != nil {
		size := terminalSize(*b.TTY)
		spec.TTY = &size
	}
	return spec, input, err
}

// commandSpec decodes the fields that have b.Encoding.
func commandSpec(b api.RunExec) (spec process.Spec, err error) {
	if b.Encoding != api.EncodingBase64 {
		return process.Spec{Argv: b.Command.Argv, Shell: b.Command.Shell, Env: b.Env, Dir: b.Cwd}, nil
	}
	if spec.Shell, err = decodeText("command", b.Command.Shell, b.Encoding); err != nil {
		return spec, err
	}
	if spec.Dir, err = decodeText("cwd", b.Cwd, b.Encoding); err != nil {
		return spec, err
	}
	spec.Argv = make([]string, len(b.Command.Argv))
	for i, word := range b.Command.Argv {
		if spec.Argv[i], err = decodeText("command", word, b.Encoding); err != nil {
			return spec, err
		}
	}
	spec.Env = make(map[string]string, len(b.Env))
	for name, value := range b.Env {
		if spec.Env[name], err = decodeText("env", value, b.Encoding); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

func decodeText(field, text, encoding string) (string, error) {
	data, err := decodeBytes(field, text, encoding)
	return string(data), err
}

// terminalSize is zero if a number is out of range; the service refuses that.
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
		return nil, errs.InvalidField(field, "is not valid base64")
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

// encodeOutput leaves out a character that the limit cut.
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

// shownExec returns a process as the API shows it.
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

type listOfVMInput struct {
	IDPath
	PageInput
}

func (h *execHandlers) list(ctx context.Context, in *listOfVMInput) (*paged[api.Exec], error) {
	processes, err := h.processes.List(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return list[process.Process, api.Exec]{
		all: processes, show: shownExec, path: "/vms/" + url.PathEscape(in.ID) + "/execs",
		at: func(p process.Process) position { return position{p.StartedAt, p.ID} },
	}.page(in.PageInput)
}

// ExecPath is the input of routes about one exec. It is exported for huma.
type ExecPath struct {
	IDPath
	ExecID string `path:"exec_id" doc:"The exec's ID."`
}

func (h *execHandlers) get(ctx context.Context, in *ExecPath) (*answer[api.Exec], error) {
	p, err := h.processes.Get(ctx, scope(ctx), in.ID, in.ExecID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Exec]{Body: shownExec(p)}, nil
}

func (h *execHandlers) delete(ctx context.Context, in *ExecPath) (*answer[api.Deleted], error) {
	if err := h.processes.Remove(ctx, scope(ctx), in.ID, in.ExecID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type signalExecInput struct {
	ExecPath
	Body api.SignalExec
}

func (h *execHandlers) signal(ctx context.Context, in *signalExecInput) (*answer[api.Done], error) {
	return done(h.processes.Signal(ctx, scope(ctx), in.ID, in.ExecID, in.Body.Signal))
}

type writeExecInput struct {
	ExecPath
	Body api.ExecInput
}

func (h *execHandlers) writeStdin(ctx context.Context, in *writeExecInput) (*answer[api.Done], error) {
	data, err := decodeBytes("data", in.Body.Data, in.Body.Encoding)
	if err != nil {
		return nil, err
	}
	return done(h.processes.WriteStdin(ctx, scope(ctx), in.ID, in.ExecID, data, in.Body.Close))
}

type resizeExecInput struct {
	ExecPath
	Body api.TerminalSize
}

func (h *execHandlers) resize(ctx context.Context, in *resizeExecInput) (*answer[api.Done], error) {
	return done(h.processes.Resize(ctx, scope(ctx), in.ID, in.ExecID, terminalSize(in.Body)))
}

// done answers a call without a result.
func done(err error) (*answer[api.Done], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Done]{Body: api.Done{Status: "ok"}}, nil
}

type execLogsInput struct {
	ExecPath
	Follow bool `query:"follow" doc:"Continue until the exec ends."`
}

func (h *execHandlers) logs(_ context.Context, in *execLogsInput) (*huma.StreamResponse, error) {
	return h.textStream(in.Follow, func(ctx context.Context, w io.Writer) error {
		began := func() {
			if in.Follow { // the answer begins before there is output
				_, _ = w.Write(nil)
			}
		}
		return h.processes.Log(ctx, scope(ctx), in.ID, in.ExecID, in.Follow, began, w)
	}), nil
}
