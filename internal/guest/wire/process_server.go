package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/yamux"
)

// process serves an operation on processes, and reports whether it is one that
// the handler knows.
func (r request) process(ctx context.Context, asked Request) bool {
	h, ok := r.handler.(ProcessHandler)
	if !ok {
		return false
	}
	switch asked.Op {
	case OpExec, OpStartProcess:
		r.startProcess(ctx, h, asked)
	case OpProcesses:
		r.listProcesses(h)
	case OpAttachProcess, OpProcess, OpWriteProcess, OpSignalProcess, OpResizeProcess, OpRemoveProcess:
		r.oneProcess(ctx, h, asked)
	default:
		return false
	}
	return true
}

func (r request) startProcess(ctx context.Context, h ProcessHandler, asked Request) {
	var spec ProcessSpec
	if err := json.Unmarshal(asked.Args, &spec); err != nil || !ValidProcessID(spec.ID) {
		sendError(r.stream, CodeInvalid, "what to run is not understood")
		return
	}
	if asked.Op == OpExec {
		p, reader, err := h.ExecProcess(spec)
		r.attached(ctx, h, p, reader, err)
		return
	}
	p, err := h.StartProcess(spec)
	r.answer(p, err)
}

func (r request) oneProcess(ctx context.Context, h ProcessHandler, asked Request) {
	var args ProcessArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || asked.Op == OpResizeProcess && args.Terminal == nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("the arguments of %s are not understood", asked.Op))
		return
	}
	switch asked.Op {
	case OpAttachProcess:
		p, reader, err := h.AttachProcess(args.ID, args.From)
		r.attached(ctx, h, p, reader, err)
	case OpProcess:
		p, err := h.Process(args.ID)
		r.answer(p, err)
	case OpWriteProcess:
		r.writeProcess(ctx, h, args.ID)
	case OpSignalProcess:
		r.answer(nil, h.SignalProcess(args.ID, args.Signal))
	case OpResizeProcess:
		r.answer(nil, h.ResizeProcess(args.ID, *args.Terminal))
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
			return // the host sees that the end is missing
		}
	}
	if err := out.add(frameEnd, nil); err == nil {
		_ = out.flush()
	}
}

// attached passes output to the host and stdin from it, until the process has
// ended or one of the two has left.
func (r request) attached(ctx context.Context, h ProcessHandler, p Process, reader ProcessAttachment, err error) {
	if err != nil {
		sendFailure(r.stream, err)
		return
	}
	defer reader.Close()
	if err := sendResult(r.stream, p); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		defer cancel()
		r.feed(ctx, h, p.Spec.ID)
	}()
	r.give(ctx, reader)
	cancel()
	_ = r.stream.SetDeadline(time.Now())
	<-fed
	_ = r.stream.SetDeadline(time.Time{})
}

// give sends chunks as they come. Those that are there at once go together.
func (r request) give(ctx context.Context, reader ProcessAttachment) {
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

// feed passes frames of stdin to the process until the host leaves. Once the
// process reads no more, what still comes is dropped.
func (r request) feed(ctx context.Context, h ProcessHandler, id string) {
	frames := frameReader{r: r.stream}
	told := false
	for {
		kind, payload, err := frames.next()
		if err != nil {
			return
		}
		var refused *RemoteError
		err = r.take(ctx, h, id, kind, payload)
		if errors.As(err, &refused) && !told {
			told = true
			err = writeFrame(r.stream, frameNoStdin, nil)
		}
		if err != nil && !errors.As(err, &refused) {
			return
		}
	}
}

// writeProcess is a write to stdin by a host that is not attached.
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
		if err = r.take(ctx, h, id, kind, payload); err != nil {
			_ = writeFrame(r.stream, frameNoStdin, nil)
		} else if kind != frameStdin {
			_ = writeFrame(r.stream, frameEnd, nil)
			return
		}
	}
}

// take does what one frame from the host says.
func (r request) take(ctx context.Context, h ProcessHandler, id string, kind byte, payload []byte) error {
	switch kind {
	case frameStdin:
		return r.offer(ctx, h, id, payload)
	case frameStdinEnd:
		return h.EndProcessStdin(ctx, id)
	case frameStdinFlush:
		return nil
	default:
		return errProcessFrame
	}
}

// offer waits until the process has taken p or the host has left.
func (r request) offer(ctx context.Context, h ProcessHandler, id string, p []byte) error {
	for {
		waiting, cancel := context.WithTimeout(ctx, r.times.beat)
		n, err := h.WriteProcess(waiting, id, p)
		cancel()
		p = p[n:]
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
		_ = r.stream.SetWriteDeadline(time.Now().Add(r.times.stall))
		if err := writeFrame(r.stream, frameBeat, nil); err != nil {
			return err
		}
	}
}

// frameBuffer gathers frames and sends them in one piece.
type frameBuffer struct {
	stream *yamux.Stream
	stall  time.Duration
	buf    []byte
}

// Bounds of a frameBuffer in bytes: what it gathers, and what it holds on to.
const (
	maxGathered = 2 * MaxFrame
	maxIdle     = 4 << 10
)

func (b *frameBuffer) add(kind byte, payload []byte) error {
	if len(b.buf)+frameStart+len(payload) > maxGathered {
		if err := b.flush(); err != nil {
			return err
		}
	}
	var err error
	b.buf, err = appendFrame(b.buf, kind, payload)
	return err
}

// flush sends what was gathered. A host that takes nothing for long ends it.
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
