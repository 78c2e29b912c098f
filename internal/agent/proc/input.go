package proc

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

var errStdinClosed = wire.Refuse(wire.CodeStdinClosed, "the process reads no more from its stdin")

// endOfInput is what ctrl-D types.
const endOfInput = 4

// input is the way to a process's stdin.
type input struct {
	turn     chan struct{} // held by the one who writes
	file     *os.File
	terminal bool
}

func newInput(file *os.File, terminal bool) *input {
	return &input{turn: make(chan struct{}, 1), file: file, terminal: terminal}
}

// write returns when the process's pipe or terminal has taken all of b, or ctx
// is done, and how much it took.
func (in *input) write(ctx context.Context, b []byte) (int, error) {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := in.file.SetWriteDeadline(time.Time{}); err != nil {
		return 0, errStdinClosed
	}
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		_ = in.file.SetWriteDeadline(time.Now())
	})
	n, err := in.file.Write(b)
	if !stop() {
		<-cut // or it would meet the next one's write
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, ctx.Err()
	case !in.terminal:
		_ = in.file.Close()
	}
	return n, errStdinClosed
}

// end closes stdin behind what was written.
func (in *input) end(ctx context.Context) error {
	if in.terminal {
		_, err := in.write(ctx, []byte{endOfInput})
		return err
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := in.file.Close(); err != nil {
		return errStdinClosed
	}
	return nil
}

// processEnded ends a write under way. A terminal is closed with its output.
func (in *input) processEnded() {
	if !in.terminal {
		_ = in.file.Close()
	}
}
