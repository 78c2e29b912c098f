package envd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// The messages of what is sent to processes.
type (
	inputRequest struct {
		Process selector `json:"process"`
		Input   input    `json:"input"`
	}
	input struct {
		Stdin []byte `json:"stdin"`
		PTY   []byte `json:"pty"`
	}
	streamInputRequest struct {
		Start *struct {
			Process selector `json:"process"`
		} `json:"start"`
		Data *struct {
			Input input `json:"input"`
		} `json:"data"`
	}
	signalRequest struct {
		Process selector   `json:"process"`
		Signal  signalName `json:"signal"`
	}
	updateRequest struct {
		Process selector  `json:"process"`
		PTY     *terminal `json:"pty"`
	}
)

// signalName is a signal by its name or number in the protocol.
type signalName string

const kill signalName = "SIGKILL"

// UnmarshalJSON implements [encoding/json.Unmarshaler].
func (s *signalName) UnmarshalJSON(text []byte) error {
	known := map[string]signalName{`"SIGNAL_SIGTERM"`: "SIGTERM", "15": "SIGTERM", `"SIGNAL_SIGKILL"`: kill, "9": kill}
	name, ok := known[string(text)]
	if !ok {
		return connect.Errorf(connect.InvalidArgument, "signal: %s is not one of SIGNAL_SIGTERM and SIGNAL_SIGKILL", errs.Brief(string(text)))
	}
	*s = name
	return nil
}

// sendInput writes to a process.
func (e *Envd) sendInput(ctx context.Context, c call, req *inputRequest) (any, error) {
	return empty{}, e.with(ctx, c, req.Process, func(t target) error { return e.write(ctx, c, t, req.Input) })
}

// write writes to the stdin or the terminal of a process.
func (e *Envd) write(ctx context.Context, c call, t target, in input) error {
	data := in.Stdin
	switch {
	case t.tty && in.Stdin != nil:
		return connect.Errorf(connect.Internal, "the process has a terminal, and no stdin of its own: send pty input")
	case !t.tty && in.PTY != nil:
		return connect.Errorf(connect.Internal, "the process has no terminal: send stdin input")
	case t.tty:
		data = in.PTY
	}
	if len(data) == 0 {
		return nil
	}
	return e.cfg.Processes.WriteStdin(ctx, c.scope, c.VMID, t.id, data, false)
}

// streamInput writes to a process, which the first message names.
func (e *Envd) streamInput(w http.ResponseWriter, r *http.Request, c call) {
	connect.ClientStream(w, r, func(ctx context.Context, next func() (*streamInputRequest, error)) (any, error) {
		first, err := next()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err != nil || first.Start == nil {
			return nil, connect.Errorf(connect.InvalidArgument, "the first message must be start")
		}
		if _, err := e.find(ctx, c, first.Start.Process); err != nil {
			return nil, e.explain(ctx, c, err)
		}
		for {
			message, err := next()
			if errors.Is(err, io.EOF) {
				return empty{}, nil
			}
			if err != nil {
				return nil, e.explain(ctx, c, err)
			}
			if message.Data == nil { // a keepalive
				continue
			}
			err = e.with(ctx, c, first.Start.Process, func(t target) error { return e.write(ctx, c, t, message.Data.Input) })
			if err != nil {
				return nil, e.explain(ctx, c, err)
			}
		}
	})
}

// closeStdin ends the stdin of a process.
func (e *Envd) closeStdin(ctx context.Context, c call, req *connectRequest) (any, error) {
	err := e.with(ctx, c, req.Process, func(t target) error {
		if t.tty {
			return connect.Errorf(connect.FailedPrecondition, "a terminal has no stdin to close: send the byte 0x04 to it")
		}
		return e.cfg.Processes.WriteStdin(ctx, c.scope, c.VMID, t.id, nil, true)
	})
	if errs.HasCode(err, "stdin_closed") { // already
		err = nil
	}
	return empty{}, err
}

// sendSignal sends a signal to a process and its group.
func (e *Envd) sendSignal(ctx context.Context, c call, req *signalRequest) (any, error) {
	if req.Signal == "" {
		return nil, connect.Errorf(connect.InvalidArgument, "signal: must be SIGNAL_SIGTERM or SIGNAL_SIGKILL")
	}
	return empty{}, e.with(ctx, c, req.Process, func(t target) error {
		err := e.cfg.Processes.Signal(ctx, c.scope, c.VMID, t.id, string(req.Signal))
		if err == nil && req.Signal == kill {
			e.awaitEnd(ctx, c, t)
		}
		return err
	})
}

// killTime is how long a call waits for the end of a process that it has killed.
const killTime = time.Second

// awaitEnd waits a little for the end of a process, so that the client's next call does
// not find it running. It ignores errors: the signal was sent.
func (e *Envd) awaitEnd(ctx context.Context, c call, t target) {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	p, err := e.cfg.Processes.Get(ctx, c.scope, c.VMID, t.id)
	if err != nil || p.State != process.Running {
		return
	}
	stream, err := e.cfg.Processes.Attach(ctx, c.scope, c.VMID, t.id, p.Output)
	if err != nil {
		return
	}
	defer func() { _ = stream.Close() }()
	for {
		if chunk, err := stream.Next(); err != nil || chunk.Exit != nil {
			return
		}
	}
}

// update changes the size of a process's terminal.
func (e *Envd) update(ctx context.Context, c call, req *updateRequest) (any, error) {
	var size *process.Size
	if req.PTY != nil && req.PTY.Size != nil {
		var err error
		if size, err = sizeOf(req.PTY.Size.Rows, req.PTY.Size.Cols); err != nil {
			return nil, err
		}
	}
	return empty{}, e.with(ctx, c, req.Process, func(t target) error {
		if size == nil {
			return nil
		}
		return e.cfg.Processes.Resize(ctx, c.scope, c.VMID, t.id, *size)
	})
}
