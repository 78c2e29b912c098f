package proc

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

var errStdinClosed = wire.Refuse(wire.CodeStdinClosed, "the stdin of the process is closed")

// endOfInput is the byte that ctrl-D sends.
const endOfInput = 4

// input writes to a process's stdin.
type input struct {
	lock     chan struct{} // held during a write
	file     *os.File
	terminal bool
}

// write writes b to the process's pipe or terminal. It waits until all is written or
// ctx is done, and returns the number of bytes written.
func (in *input) write(ctx context.Context, b []byte) (int, error) {
	select {
	case in.lock <- struct{}{}:
		defer func() { <-in.lock }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := in.file.SetWriteDeadline(time.Time{}); err != nil {
		return 0, errStdinClosed
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		_ = in.file.SetWriteDeadline(time.Now())
	})
	n, err := in.file.Write(b)
	if !stop() {
		<-cancelled // otherwise its deadline could interrupt the next write
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

// end closes stdin after the bytes that were written.
func (in *input) end(ctx context.Context) error {
	if in.terminal {
		_, err := in.write(ctx, []byte{endOfInput})
		return err
	}
	select {
	case in.lock <- struct{}{}:
		defer func() { <-in.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := in.file.Close(); err != nil {
		return errStdinClosed
	}
	return nil
}
