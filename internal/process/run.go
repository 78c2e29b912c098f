package process

import (
	"cmp"
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// Bounds of what [Service.Run] returns of each output stream, in bytes.
const (
	DefaultOutput = 1 << 20
	MaxOutput     = 4 << 20
)

// Run is a command whose output is collected. Its stdin is Input, and then closed;
// Stdin of its Spec is ignored.
type Run struct {
	Spec
	Input     []byte
	MaxOutput int // bytes of stdout, and as many of stderr; 0 means DefaultOutput
}

// Result is the result of a [Run].
type Result struct {
	ID             string
	Stdout, Stderr Output
	Exit           Exit
	Took           time.Duration
}

// Output is the beginning of a stream.
type Output struct {
	Data      []byte
	Truncated bool // more was read and dropped
}

func (o *Output) add(data []byte, limit int) {
	n := min(len(data), limit-len(o.Data))
	o.Data = append(o.Data, data[:n]...)
	o.Truncated = o.Truncated || n < len(data)
}

// Collect returns the result of a command that [Service.Run] has started, once it has
// ended. Output that the guest has dropped meanwhile is missing.
func (s *Service) Collect(ctx context.Context, scope access.Scope, vmID, id string, r Run) (Result, error) {
	stream, err := s.Attach(ctx, scope, vmID, id, 0)
	if err != nil {
		return Result{}, err
	}
	result := Result{ID: id}
	began := stream.Process().StartedAt
	r.Stdin = false // it has been written
	err = result.collect(stream, r)
	result.Took = result.Exit.At.Sub(began)
	return result, err
}

// Run runs a command to its end. When ctx is done before, it kills the process
// group: the caller does not get the output.
func (s *Service) Run(ctx context.Context, scope access.Scope, vmID string, r Run) (Result, error) {
	if r.MaxOutput < 0 || r.MaxOutput > MaxOutput {
		return Result{}, errs.InvalidField("max_output_bytes", "%d is out of range; 1 to %d can be kept", r.MaxOutput, MaxOutput).
			WithHint("a streaming exec has no such limit")
	}
	r.Stdin = len(r.Input) > 0
	if err := r.check(); err != nil {
		return Result{}, err
	}
	guest, release, err := s.guests.Open(ctx, scope, vmID, Wake)
	if err != nil {
		return Result{}, err
	}
	defer release()
	began := time.Now()
	// Without ctx: the id of a process that is to be killed must be known.
	var stream Stream
	err = s.once(ctx, &r.Spec, func() error {
		stream, err = guest.Exec(context.WithoutCancel(ctx), r.Spec)
		return err
	})
	if err != nil {
		return Result{}, err
	}
	result := Result{ID: stream.Process().ID}
	abandoned := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(abandoned)
		remove(ctx, guest, result.ID)
		_ = stream.Close()
	})
	err = result.collect(stream, r)
	if !stop() {
		<-abandoned
		return Result{}, context.Cause(ctx)
	}
	result.Took = time.Since(began)
	return result, err
}

// collect writes the input, reads the output until the process ends, and closes
// the stream.
func (r *Result) collect(stream Stream, run Run) error {
	written := make(chan struct{})
	go func() {
		defer close(written)
		if run.Stdin { // a process need not read its input
			_, _ = stream.Write(run.Input)
			_ = stream.CloseStdin()
		}
	}()
	err := r.drain(stream, cmp.Or(run.MaxOutput, DefaultOutput))
	_ = stream.Close() // ends a write, too
	<-written
	return err
}

func (r *Result) drain(stream Stream, limit int) error {
	for {
		chunk, err := stream.Next()
		switch {
		case err != nil:
			return err
		case chunk.Exit != nil:
			r.Exit = *chunk.Exit
			return nil
		case chunk.Lost > 0:
			r.Stdout.Truncated, r.Stderr.Truncated = true, true
		case chunk.Channel == Stderr:
			r.Stderr.add(chunk.Data, limit)
		default:
			r.Stdout.add(chunk.Data, limit)
		}
	}
}
