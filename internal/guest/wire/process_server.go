package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/yamux"
)

// process serves the operations on processes. It reports whether it served the request.
func (r request) process(ctx context.Context, asked Request) bool {
	h, ok := r.handler.(ProcessHandler)
	if !ok {
		return false
	}
	switch asked.Op {
	case OpExec, OpExecBytes, OpStartProcess, OpStartBytes:
		r.startProcess(ctx, h, asked)
	case OpProcesses:
		r.listProcesses(h)
	case OpAttachProcess, OpProcess, OpWriteProcess, OpSignalProcess, OpResizeProcess, OpCloseOutput, OpRemoveProcess:
		r.oneProcess(ctx, h, asked)
	default:
		return false
	}
	return true
}

func (r request) startProcess(ctx context.Context, h ProcessHandler, asked Request) {
	spec, err := decodeSpec(asked)
	if err != nil || !ValidProcessID(spec.ID) {
		sendError(r.stream, CodeInvalid, "invalid process spec")
		return
	}
	if asked.Op == OpExec || asked.Op == OpExecBytes {
		p, reader, err := h.ExecProcess(spec)
		r.serveAttached(ctx, h, p, reader, err)
		return
	}
	p, err := h.StartProcess(spec)
	r.answer(p, err)
}

func decodeSpec(asked Request) (ProcessSpec, error) {
	if asked.Op == OpExecBytes || asked.Op == OpStartBytes {
		var b byteSpec
		err := json.Unmarshal(asked.Args, &b)
		return b.spec(), err
	}
	var spec ProcessSpec
	err := json.Unmarshal(asked.Args, &spec)
	return spec, err
}

func (r request) oneProcess(ctx context.Context, h ProcessHandler, asked Request) {
	var args ProcessArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || asked.Op == OpResizeProcess && args.Terminal == nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("invalid arguments of %s", asked.Op))
		return
	}
	switch asked.Op {
	case OpAttachProcess:
		p, reader, err := h.AttachProcess(args.ID, args.From)
		r.serveAttached(ctx, h, p, reader, err)
	case OpProcess:
		p, err := h.Process(args.ID)
		r.answer(p, err)
	case OpWriteProcess:
		r.writeProcess(ctx, h, args.ID)
	case OpSignalProcess:
		r.answer(nil, h.SignalProcess(args.ID, args.Signal))
	case OpResizeProcess:
		r.answer(nil, h.ResizeProcess(args.ID, *args.Terminal))
	case OpCloseOutput:
		r.answer(nil, h.CloseProcessOutput(args.ID, args.Stderr))
	case OpRemoveProcess:
		r.answer(nil, h.RemoveProcess(args.ID))
	}
}

// answer sends the one reply of an operation.
func (r request) answer(result any, err error) {
	if err != nil {
		sendFailure(r.stream, err)
		return
	}
	_ = sendResult(r.stream, result)
}

func (r request) listProcesses(h ProcessHandler) {
	out := frameBuffer{stream: r.stream, stall: r.times.stall}
	if err := sendResult(r.stream, nil); err != nil {
		return
	}
	for _, p := range h.Processes() {
		raw, err := json.Marshal(p)
		if err == nil {
			err = out.add(frameProcess, raw)
		}
		if err != nil {
			return // hatchd notices that frameEnd is missing
		}
	}
	if err := out.add(frameEnd, nil); err == nil {
		_ = out.flush()
	}
}

// serveAttached sends output to hatchd and receives stdin from it, until the process has
// ended or hatchd has closed the stream.
func (r request) serveAttached(ctx context.Context, h ProcessHandler, p Process, reader ProcessAttachment, err error) {
	if err != nil {
		sendFailure(r.stream, err)
		return
	}
	defer reader.Close()
	if err := sendResult(r.stream, p); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	received := make(chan struct{})
	go func() {
		defer close(received)
		defer cancel()
		r.receiveStdin(ctx, h, p.Spec.ID)
	}()
	r.sendOutput(ctx, reader)
	cancel()
	_ = r.stream.SetDeadline(time.Now())
	<-received
	_ = r.stream.SetDeadline(time.Time{})
}

// sendOutput sends chunks. It sends those that are available at the same time together.
func (r request) sendOutput(ctx context.Context, reader ProcessAttachment) {
	out := frameBuffer{stream: r.stream, stall: r.times.stall}
	for {
		chunk, err := reader.Next(ctx, out.flush)
		if err != nil {
			return
		}
		kind, payload, err := chunk.frame()
		if err == nil {
			err = out.add(kind, payload)
		}
		if err == nil && chunk.Exit != nil {
			err = out.flush()
		}
		if err != nil || chunk.Exit != nil {
			return
		}
	}
}

// receiveStdin passes frames of stdin to the process until hatchd closes the stream. It
// drops them once the stdin of the process is closed.
func (r request) receiveStdin(ctx context.Context, h ProcessHandler, id string) {
	frames := frameReader{r: r.stream}
	refusalSent := false
	for {
		kind, payload, err := frames.next()
		if err != nil {
			return
		}
		var refused *RemoteError
		err = r.applyFrame(ctx, h, id, kind, payload)
		if errors.As(err, &refused) && !refusalSent {
			refusalSent = true
			err = writeFrame(r.stream, frameNoStdin, nil)
		}
		if err != nil && !errors.As(err, &refused) {
			return
		}
	}
}

// writeProcess serves a write to stdin without an attached reader.
func (r request) writeProcess(ctx context.Context, h ProcessHandler, id string) {
	_, err := h.Process(id)
	r.answer(nil, err)
	frames := frameReader{r: r.stream}
	for err == nil {
		var kind byte
		var payload []byte
		if kind, payload, err = frames.next(); err != nil {
			return
		}
		if err = r.applyFrame(ctx, h, id, kind, payload); err != nil {
			_ = writeFrame(r.stream, frameNoStdin, nil)
		} else if kind != frameStdin {
			_ = writeFrame(r.stream, frameEnd, nil)
			return
		}
	}
}

// applyFrame handles a frame from hatchd.
func (r request) applyFrame(ctx context.Context, h ProcessHandler, id string, kind byte, payload []byte) error {
	switch kind {
	case frameStdin:
		return r.writeInput(ctx, h, id, payload)
	case frameStdinEnd:
		return h.EndProcessStdin(ctx, id)
	case frameStdinFlush:
		return nil
	default:
		return errProcessFrame
	}
}

// writeInput waits until the process has read p or hatchd has closed the stream.
func (r request) writeInput(ctx context.Context, h ProcessHandler, id string, p []byte) error {
	for {
		waiting, cancel := context.WithTimeout(ctx, r.times.busy)
		n, err := h.WriteProcess(waiting, id, p)
		cancel()
		p = p[n:]
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
		_ = r.stream.SetWriteDeadline(time.Now().Add(r.times.stall))
		if err := writeFrame(r.stream, frameBusy, nil); err != nil {
			return err
		}
	}
}

// frameBuffer buffers frames and sends them in one write.
type frameBuffer struct {
	stream *yamux.Stream
	stall  time.Duration
	buf    []byte
}

// Limits of a frameBuffer, in bytes.
const (
	maxBuffered = 2 * MaxFrame
	maxIdle     = 4 << 10 // capacity of an empty buffer
)

func (b *frameBuffer) add(kind byte, payload []byte) error {
	if len(b.buf)+frameStart+len(payload) > maxBuffered {
		if err := b.flush(); err != nil {
			return err
		}
	}
	var err error
	b.buf, err = appendFrame(b.buf, kind, payload)
	return err
}

// flush sends the buffer. It fails if hatchd reads nothing for too long.
func (b *frameBuffer) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	_ = b.stream.SetWriteDeadline(time.Now().Add(b.stall))
	_, err := b.stream.Write(b.buf)
	if b.buf = b.buf[:0]; cap(b.buf) > maxIdle {
		b.buf = nil
	}
	return err
}
