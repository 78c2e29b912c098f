package proc

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what may still come of a process that has ended, from descendants
// that hold its output open: time in which nothing comes, and bytes, which are
// more than what a pipe holds.
const (
	lastWait  = 250 * time.Millisecond
	lastBytes = 1 << 20
)

// buffers are lent while there is something to read, and not to those who wait.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// pump keeps what comes from f, until nobody can write to it any more. Once the
// process has ended, what is there already and comes in a moment is still
// output; later bytes are thrown away, so that a descendant that outlives the
// process does not find its output closed.
func (p *process) pump(f *os.File, stderr bool) {
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	write := func(b []byte) { p.write(stderr, b) }
	for err == nil {
		err = readOnce(raw, write)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // by reap
		err = readLast(f, raw, write)
	}
	p.drained()
	if err != nil || f.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for err == nil {
		err = readOnce(raw, func([]byte) {})
	}
}

// readLast reads what is still to come of a process that has ended. The time
// that write takes does not count.
func readLast(f *os.File, raw syscall.RawConn, write func([]byte)) error {
	wait, bytes := lastWait, 0
	for wait > 0 && bytes < lastBytes {
		began := time.Now()
		if err := f.SetReadDeadline(began.Add(wait)); err != nil {
			return err
		}
		err := readOnce(raw, func(b []byte) {
			wait -= time.Since(began)
			bytes += len(b)
			write(b)
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readOnce waits until there is something to read, and passes it on. That the
// other end of a terminal is gone is an end like any other.
func readOnce(raw syscall.RawConn, pass func([]byte)) error {
	var buf *[32 << 10]byte
	var n int
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[32 << 10]byte)
		for {
			if n, failed = unix.Read(int(fd), buf[:]); !errors.Is(failed, unix.EINTR) {
				break
			}
		}
		if errors.Is(failed, unix.EAGAIN) {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	switch {
	case err != nil:
		return err
	case n == 0 && failed == nil, errors.Is(failed, unix.EIO):
		return io.EOF
	case failed != nil:
		return failed
	}
	pass(buf[:n])
	return nil
}

// drained says that one of the streams brings no more output.
func (p *process) drained() {
	t := p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	p.draining--
	p.settle()
	p.changed.Broadcast()
	t.prune()
}
