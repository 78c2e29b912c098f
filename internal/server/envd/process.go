package envd

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// The messages of processes. In requests, null is the same as a missing field.
type (
	startRequest struct {
		Process config    `json:"process"`
		PTY     *terminal `json:"pty"`
		Tag     string    `json:"tag"`
		Stdin   *bool     `json:"stdin"` // SDKs that predate it want a stdin
	}
	config struct {
		Cmd  string            `json:"cmd"`
		Args []string          `json:"args"`
		Envs map[string]string `json:"envs,omitempty"`
		Cwd  string            `json:"cwd,omitempty"`
	}
	terminal struct {
		Size *struct {
			Cols number `json:"cols"`
			Rows number `json:"rows"`
		} `json:"size"`
	}
	connectRequest struct {
		Process selector `json:"process"`
	}

	processEvent struct {
		Event event `json:"event"`
	}
	event struct {
		Start     *startEvent `json:"start,omitempty"`
		Data      *dataEvent  `json:"data,omitempty"`
		End       *endEvent   `json:"end,omitempty"`
		Keepalive *empty      `json:"keepalive,omitempty"`
	}
	startEvent struct {
		PID int `json:"pid"`
	}
	dataEvent struct {
		Stdout []byte `json:"stdout,omitempty"`
		Stderr []byte `json:"stderr,omitempty"`
		PTY    []byte `json:"pty,omitempty"`
	}
	endEvent struct {
		ExitCode int    `json:"exitCode,omitempty"`
		Exited   bool   `json:"exited,omitempty"`
		Status   string `json:"status"`
		Error    string `json:"error,omitempty"`
	}

	listAnswer struct {
		Processes []listedProcess `json:"processes"`
	}
	listedProcess struct {
		Config config `json:"config"`
		PID    int    `json:"pid"`
		Tag    string `json:"tag,omitempty"`
	}

	empty struct{}
)

// number is an unsigned number, which may also be given as text.
type number uint32

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		return nil
	}
	value, err := strconv.ParseUint(strings.Trim(string(text), `"`), 10, 32)
	if err != nil {
		return connect.Errorf(connect.InvalidArgument, "%s is not a number from 0 to 4294967295", errs.Brief(string(text)))
	}
	*n = number(value)
	return nil
}

// processKeepalive keeps the stream of a silent process open.
var processKeepalive = processEvent{event{Keepalive: &empty{}}}

// start starts a process and sends its events. The process does not end with the stream,
// but with its timeout.
func (e *Envd) start(w http.ResponseWriter, r *http.Request, c call) {
	connect.ServerStream(w, r, processKeepalive, func(ctx context.Context, req *startRequest, send connect.Send) error {
		dir := ""
		stream, err := e.cfg.Processes.Open(ctx, c.scope, c.VMID, func() (process.Spec, error) {
			spec, err := e.spec(ctx, r, c, req)
			dir = spec.Dir
			return spec, err
		})
		if errs.HasCode(err, "invalid_cwd") {
			return connect.Errorf(connect.InvalidArgument, "cwd '%s' does not exist", errs.Brief(dir))
		}
		if err != nil {
			return e.explain(ctx, c, err)
		}
		defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
		return e.follow(ctx, c, stream, send)
	})
}

// connect sends the events of a process that exists, and its further output.
func (e *Envd) connect(w http.ResponseWriter, r *http.Request, c call) {
	connect.ServerStream(w, r, processKeepalive, func(ctx context.Context, req *connectRequest, send connect.Send) error {
		p, err := e.find(ctx, c, req.Process)
		if err != nil {
			return e.explain(ctx, c, err)
		}
		stream, err := e.cfg.Processes.Attach(ctx, c.scope, c.VMID, p.ID, p.Output)
		if err != nil {
			return e.explain(ctx, c, err)
		}
		return e.follow(ctx, c, stream, send)
	})
}

// spec returns the process that a request asks for.
func (e *Envd) spec(ctx context.Context, r *http.Request, c call, req *startRequest) (process.Spec, error) {
	s := process.Spec{
		Argv: append([]string{req.Process.Cmd}, req.Process.Args...), Tag: req.Tag,
		Env: map[string]string{}, User: c.account(), Stdin: req.Stdin == nil || *req.Stdin,
	}
	maps.Copy(s.Env, c.Env)
	maps.Copy(s.Env, req.Process.Envs)
	maps.Copy(s.Env, map[string]string{"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": c.ID, "E2B_TEMPLATE_ID": c.Template})
	timeout, err := connect.Timeout(r)
	if err != nil {
		return s, err
	}
	// Before the stream's own end, which comes before the client's.
	s.Timeout = min(timeout-2*connect.Margin(timeout), process.MaxTimeout)
	if req.PTY != nil {
		s.Stdin, s.TTY = true, &process.Size{Rows: 24, Cols: 80}
		if size := req.PTY.Size; size != nil {
			if s.TTY, err = sizeOf(size.Rows, size.Cols); err != nil {
				return s, err
			}
		}
	}
	s.Dir, err = e.workDir(ctx, c, req.Process.Cwd)
	return s, err
}

func sizeOf(rows, cols number) (*process.Size, error) {
	if rows < 1 || rows > 0xffff || cols < 1 || cols > 0xffff {
		return nil, connect.Errorf(connect.InvalidArgument, "pty.size: %d rows and %d cols are out of range; both are 1 to 65535", rows, cols)
	}
	return &process.Size{Rows: uint16(rows), Cols: uint16(cols)}, nil
}

// workDir returns the directory that a process begins in; "" is the user's home.
func (e *Envd) workDir(ctx context.Context, c call, given string) (string, error) {
	switch {
	case given == "" && c.user == "":
		return c.Dir, nil
	case given == "" || path.IsAbs(given): // the guest checks the user
		return given, nil
	default:
		return e.resolve(ctx, c, given)
	}
}

// follow sends the events of a process until it ends, and closes its stream.
func (e *Envd) follow(ctx context.Context, c call, stream process.Stream, send connect.Send) error {
	defer func() { _ = stream.Close() }()
	p := stream.Process()
	e.targets.put(targetKey{c.VMID, p.PID}, targetOf(p))
	if err := send(processEvent{event{Start: &startEvent{p.PID}}}); err != nil {
		return err
	}
	for {
		chunk, err := stream.Next()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return e.explain(ctx, c, broken(err))
		}
		switch {
		case chunk.Exit != nil && chunk.Exit.TimedOut:
			return context.DeadlineExceeded
		case chunk.Exit != nil:
			return send(processEvent{event{End: endOf(*chunk.Exit)}})
		case chunk.Lost > 0: // of a process that was not waited for
			continue
		}
		if err := send(processEvent{event{Data: dataOf(p, chunk)}}); err != nil {
			return err
		}
	}
}

// broken returns the error of a stream that ends without a reason.
func broken(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return connect.Errorf(connect.Unavailable, "the guest no longer answers")
	}
	return err
}

func dataOf(p process.Process, chunk process.Chunk) *dataEvent {
	switch {
	case p.Spec.TTY != nil:
		return &dataEvent{PTY: chunk.Data}
	case chunk.Channel == process.Stderr:
		return &dataEvent{Stderr: chunk.Data}
	default:
		return &dataEvent{Stdout: chunk.Data}
	}
}

// endOf returns the end of a process in the words that Go has for it, which the CLI
// compares.
func endOf(exit process.Exit) *endEvent {
	if exit.Signal != "" {
		text := "signal: " + strings.ToLower(exit.Signal)
		if s := unix.SignalNum(exit.Signal); s != 0 {
			text = "signal: " + s.String()
		}
		return &endEvent{ExitCode: -1, Status: text, Error: text}
	}
	end := &endEvent{ExitCode: exit.Code, Exited: true, Status: "exit status " + strconv.Itoa(exit.Code)}
	if exit.Code != 0 {
		end.Error = end.Status
	}
	return end
}

// list lists the processes that run.
func (e *Envd) list(ctx context.Context, c call, _ *empty) (any, error) {
	all, err := e.cfg.Processes.List(ctx, c.scope, c.VMID)
	if err != nil {
		return nil, err
	}
	answer := listAnswer{Processes: []listedProcess{}}
	for _, p := range all {
		if p.State != process.Running {
			continue
		}
		argv := p.Spec.Argv
		if p.Spec.Shell != "" {
			argv = []string{"/bin/sh", "-c", p.Spec.Shell}
		}
		listed := listedProcess{PID: p.PID, Tag: p.Spec.Tag, Config: config{Cwd: p.Spec.Dir, Args: []string{}}}
		if len(argv) > 0 {
			listed.Config.Cmd, listed.Config.Args = argv[0], argv[1:]
		}
		answer.Processes = append(answer.Processes, listed)
	}
	return answer, nil
}
