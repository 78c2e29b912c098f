package process

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Bounds on what [Service.Run] keeps of each output stream, in bytes.
const (
	DefaultOutput = 1 << 20
	MaxOutput     = 4 << 20
)

// Run is a command whose output is collected. It gets Input on stdin, or
// nothing; Stdin of its Spec does not count.
type Run struct {
	Spec
	Input     []byte
	MaxOutput int // bytes of stdout, and as many of stderr; 0 means DefaultOutput
}

// Result is what became of a [Run].
type Result struct {
	ID             string
	Stdout, Stderr Output
	Exit           Exit
	Took           time.Duration
}

// Output is the beginning of a stream.
type Output struct {
	Data      []byte
	Truncated bool // there was more, which was read and dropped
}

func (o *Output) add(data []byte, limit int) {
	kept := min(len(data), limit-len(o.Data))
	o.Data = append(o.Data, data[:kept]...)
	o.Truncated = o.Truncated || kept < len(data)
}

// Run runs a command to its end. When ctx ends first the process group is
// killed: nobody can get its output any more.
func (s *Service) Run(ctx context.Context, owner, vmID string, r Run) (Result, error) {
	if r.MaxOutput == 0 {
		r.MaxOutput = DefaultOutput
	}
	if r.MaxOutput < 0 || r.MaxOutput > MaxOutput {
		return Result{}, errs.InvalidField("max_output_bytes", "%d is out of range; 1 to %d can be kept", r.MaxOutput, MaxOutput).
			WithHint("a streaming exec has no such limit")
	}
	r.Stdin = len(r.Input) > 0
	guest, err := s.guestFor(ctx, owner, vmID, r.Spec)
	if err != nil {
		return Result{}, err
	}
	began := time.Now()
	// Not cut off by ctx: the process must be known to be killed.
	stream, err := guest.Exec(context.WithoutCancel(ctx), r.Spec)
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

// collect feeds the process, takes what it says until it ends, and lets go.
func (r *Result) collect(stream Stream, run Run) error {
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if run.Stdin { // a process need not read what it is given
			_, _ = stream.Write(run.Input)
			_ = stream.CloseStdin()
		}
	}()
	err := r.drain(stream, run.MaxOutput)
	_ = stream.Close() // ends a write, too
	<-fed
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
