package proc

import (
	"cmp"
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
		err = readLast(f, raw, p.table.lastWait, write)
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
// that write takes does not count. What is there already is read also when the
// time is over: a guest may stand still between any two steps.
func readLast(f *os.File, raw syscall.RawConn, wait time.Duration, write func([]byte)) error {
	bytes := 0
	pass := func(b []byte) {
		bytes += len(b)
		write(b)
	}
	for bytes < lastBytes {
		err := readNow(raw, pass)
		if errors.Is(err, unix.EAGAIN) {
			if wait <= 0 {
				return nil
			}
			wait, err = readWithin(f, raw, wait, pass)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readWithin is readOnce with a bound on the wait, and returns what is left of
// it.
func readWithin(f *os.File, raw syscall.RawConn, wait time.Duration, pass func([]byte)) (left time.Duration, err error) {
	began := time.Now()
	if err := f.SetReadDeadline(began.Add(wait)); err != nil {
		return 0, err
	}
	err = readOnce(raw, func(b []byte) {
		left = wait - time.Since(began)
		pass(b)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return left, err
}

// readOnce waits until there is something to read, and passes it on.
func readOnce(raw syscall.RawConn, pass func([]byte)) error {
	var got piece
	err := raw.Read(func(fd uintptr) bool {
		got = take(fd)
		return !errors.Is(got.err, unix.EAGAIN)
	})
	return got.pass(err, pass)
}

// readNow passes on what there is to read; nothing is unix.EAGAIN.
func readNow(raw syscall.RawConn, pass func([]byte)) error {
	var got piece
	err := raw.Control(func(fd uintptr) { got = take(fd) })
	return got.pass(err, pass)
}

// piece is what one read has brought.
type piece struct {
	buf *[32 << 10]byte // nil without bytes
	n   int
	err error
}

// take reads once. That the other end of a terminal is gone is an end like any
// other.
func take(fd uintptr) piece {
	p := piece{buf: buffers.Get().(*[32 << 10]byte)}
	for {
		if p.n, p.err = unix.Read(int(fd), p.buf[:]); !errors.Is(p.err, unix.EINTR) {
			break
		}
	}
	if p.n == 0 && p.err == nil || errors.Is(p.err, unix.EIO) {
		p.err = io.EOF
	}
	if p.err != nil {
		buffers.Put(p.buf)
		p.buf = nil
	}
	return p
}

// pass passes the bytes on, unless getting them has failed with err.
func (p piece) pass(err error, to func([]byte)) error {
	if p.buf != nil {
		defer buffers.Put(p.buf)
	}
	if err != nil || p.err != nil {
		return cmp.Or(err, p.err)
	}
	to(p.buf[:p.n])
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
