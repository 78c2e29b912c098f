package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// maxListed limits a list of processes, in bytes.
const maxListed = 8 << 20

// ErrDetached means that the agent detached a reader that read nothing for too long. The
// process continues.
var ErrDetached = errors.New("the agent detached a reader that was too slow")

var errNoStdin = Refuse(CodeStdinClosed, "the stdin of the process is closed")

// ProcessStream is an attached reader of a process's output, and writer of its stdin. One
// goroutine may read and one may write.
type ProcessStream struct {
	stream  *stream
	frames  frameReader
	noStdin atomic.Bool // the stdin of the process is closed
}

// Exec starts a process and attaches to it. The stream is closed when ctx is done.
func (c *Client) Exec(ctx context.Context, spec ProcessSpec) (Process, *ProcessStream, error) {
	if !spec.isText() {
		return c.attach(ctx, OpExecBytes, toBytes(spec))
	}
	return c.attach(ctx, OpExec, spec)
}

// AttachProcess attaches to a process at an offset of its output. The stream is closed
// when ctx is done.
func (c *Client) AttachProcess(ctx context.Context, id string, from int64) (Process, *ProcessStream, error) {
	return c.attach(ctx, OpAttachProcess, ProcessArgs{ID: id, From: from})
}

func (c *Client) attach(ctx context.Context, op Op, args any) (Process, *ProcessStream, error) {
	var p Process
	s, err := c.begin(ctx, op, args)
	if err != nil {
		return p, nil, err
	}
	if err := s.firstReply(&p); err != nil {
		_ = s.Close()
		return p, nil, s.explain(err)
	}
	return p, &ProcessStream{stream: s, frames: frameReader{r: s}}, nil
}

// firstReply waits for the reply, up to the stream's timeout.
func (s *stream) firstReply(result any) error {
	_ = s.SetReadDeadline(time.Now().Add(s.timeout))
	if err := readResult(s, result); err != nil {
		return err
	}
	_ = s.SetReadDeadline(time.Time{})
	return s.cause() // SetReadDeadline may have replaced the context's deadline
}

// Next waits for the next chunk, whose data is valid until the next call.
func (s *ProcessStream) Next() (ProcessChunk, error) {
	for {
		kind, payload, err := s.frames.next()
		if (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && !s.stream.Session().IsClosed() {
			err = ErrDetached
		}
		if err != nil {
			return ProcessChunk{}, s.stream.explain(err)
		}
		switch kind {
		case frameBusy:
		case frameNoStdin:
			s.noStdin.Store(true)
		default:
			chunk, err := parseProcessFrame(kind, payload)
			return chunk, s.stream.explain(err)
		}
	}
}

// Write sends p to the process's stdin. It fails once Next has received that stdin is
// closed.
func (s *ProcessStream) Write(p []byte) (int, error) {
	if s.noStdin.Load() {
		return 0, errNoStdin
	}
	written, err := writeStdin(s.stream, p)
	return written, s.stream.explain(err)
}

// CloseStdin ends stdin after the bytes that were written.
func (s *ProcessStream) CloseStdin() error {
	return s.stream.explain(writeFrame(s.stream, frameStdinEnd, nil))
}

// Close detaches; the process continues.
func (s *ProcessStream) Close() error { return s.stream.Close() }

// writeStdin writes p as frames.
func writeStdin(w io.Writer, p []byte) (written int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), MaxFrame)]
		if err := writeFrame(w, frameStdin, part); err != nil {
			return written, err
		}
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

// StartProcess starts a process without attaching to it.
func (c *Client) StartProcess(ctx context.Context, spec ProcessSpec) (Process, error) {
	var p Process
	if !spec.isText() {
		err := c.call(ctx, OpStartBytes, toBytes(spec), &p)
		return p, err
	}
	err := c.call(ctx, OpStartProcess, spec, &p)
	return p, err
}

// Process asks for one process.
func (c *Client) Process(ctx context.Context, id string) (Process, error) {
	var p Process
	err := c.call(ctx, OpProcess, ProcessArgs{ID: id}, &p)
	return p, err
}

// SignalProcess signals a process and its process group.
func (c *Client) SignalProcess(ctx context.Context, id, name string) error {
	return c.call(ctx, OpSignalProcess, ProcessArgs{ID: id, Signal: name}, nil)
}

// ResizeProcess changes the size of a process's terminal.
func (c *Client) ResizeProcess(ctx context.Context, id string, size Terminal) error {
	return c.call(ctx, OpResizeProcess, ProcessArgs{ID: id, Terminal: &size}, nil)
}

// CloseProcessOutput closes the reading end of a process's stdout or stderr.
func (c *Client) CloseProcessOutput(ctx context.Context, id string, stderr bool) error {
	return c.call(ctx, OpCloseOutput, ProcessArgs{ID: id, Stderr: stderr}, nil)
}

// RemoveProcess kills a process and its process group, if it runs, and removes it.
func (c *Client) RemoveProcess(ctx context.Context, id string) error {
	return c.call(ctx, OpRemoveProcess, ProcessArgs{ID: id}, nil)
}

// Processes asks for all processes.
func (c *Client) Processes(ctx context.Context) ([]Process, error) {
	var all []Process
	err := c.exchange(ctx, OpProcesses, nil, func(stream io.Reader) error {
		if err := readResult(stream, nil); err != nil {
			return err
		}
		var err error
		all, err = readProcesses(io.LimitReader(stream, maxListed))
		return err
	})
	return all, err
}

func readProcesses(r io.Reader) ([]Process, error) {
	var all []Process
	frames := frameReader{r: r}
	for {
		kind, payload, err := frames.next()
		switch {
		case err != nil:
			return nil, fmt.Errorf("the list of processes is incomplete: %w", err)
		case kind == frameEnd:
			return all, nil
		case kind != frameProcess || len(all) == MaxProcesses:
			return nil, errProcessFrame
		}
		var p Process
		if err := json.Unmarshal(payload, &p); err != nil {
			return nil, fmt.Errorf("cannot decode a process: %w", err)
		}
		all = append(all, p)
	}
}

// WriteProcess writes data to a process's stdin, then closes it if end is set, and
// returns when the process has read all of it.
func (c *Client) WriteProcess(ctx context.Context, id string, data []byte, end bool) error {
	s, err := c.begin(ctx, OpWriteProcess, ProcessArgs{ID: id})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.firstReply(nil); err != nil {
		return s.explain(err)
	}
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		last := byte(frameStdinFlush)
		if end {
			last = frameStdinEnd
		}
		// After an error the wait below fails, too.
		if _, err := writeStdin(s, data); err == nil {
			_ = writeFrame(s, last, nil)
		}
	}()
	err = s.awaitWritten()
	_ = s.SetWriteDeadline(time.Now())
	<-wrote
	return s.explain(err)
}

// awaitWritten waits for the end of a write. While the process does not read, the agent
// sends frameBusy.
func (s *stream) awaitWritten() error {
	frames := frameReader{r: s}
	for {
		_ = s.SetReadDeadline(time.Now().Add(s.timeout))
		if err := s.cause(); err != nil {
			return err
		}
		kind, _, err := frames.next()
		switch {
		case err != nil:
			return err
		case kind == frameEnd:
			return nil
		case kind == frameNoStdin:
			return errNoStdin
		case kind != frameBusy:
			return errProcessFrame
		}
	}
}
