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

// Limits of the output that is read after a process has ended, while its descendants
// keep its output open.
const (
	lastTimeout = 250 * time.Millisecond // for further output
	lastBytes   = 1 << 20                // more than a pipe holds
)

// buffers has read buffers. A goroutine has one only during a read, not while it waits.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// pump reads output from f until all its writers have closed it. After the end of the
// process it keeps the rest of the pipe and further output within the limits above. It
// reads and drops more, so that descendants do not get SIGPIPE.
func (p *process) pump(f *os.File, stderr bool) {
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	write := func(b []byte) { p.write(stderr, b) }
	for err == nil {
		err = readOnce(raw, write)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // reap set the deadline
		err = readLast(f, raw, p.table.lastTimeout, write)
	}
	p.streamEnded()
	if err != nil || f.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for err == nil {
		err = readOnce(raw, func([]byte) {})
	}
}

// readLast reads the last output of a process that has ended, and waits for further
// output at most for timeout, without the time in write. It reads the rest of the pipe
// even after that: the guest may be paused at any time.
func readLast(f *os.File, raw syscall.RawConn, timeout time.Duration, write func([]byte)) error {
	bytes := 0
	pass := func(b []byte) {
		bytes += len(b)
		write(b)
	}
	for bytes < lastBytes {
		err := readAvailable(raw, pass)
		if errors.Is(err, unix.EAGAIN) {
			if timeout <= 0 {
				return nil
			}
			timeout, err = readWithin(f, raw, timeout, pass)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readWithin is readOnce with a timeout, and returns the rest of the timeout.
func readWithin(f *os.File, raw syscall.RawConn, timeout time.Duration, pass func([]byte)) (left time.Duration, err error) {
	began := time.Now()
	if err := f.SetReadDeadline(began.Add(timeout)); err != nil {
		return 0, err
	}
	err = readOnce(raw, func(b []byte) {
		left = timeout - time.Since(began)
		pass(b)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return left, err
}

// readOnce waits for output and passes it on.
func readOnce(raw syscall.RawConn, pass func([]byte)) error {
	var got piece
	err := raw.Read(func(fd uintptr) bool {
		got = readPiece(fd)
		return !errors.Is(got.err, unix.EAGAIN)
	})
	return got.pass(err, pass)
}

// readAvailable passes on available output. If there is none, it returns unix.EAGAIN.
func readAvailable(raw syscall.RawConn, pass func([]byte)) error {
	var got piece
	err := raw.Control(func(fd uintptr) { got = readPiece(fd) })
	return got.pass(err, pass)
}

// piece is the result of one read.
type piece struct {
	buf *[32 << 10]byte // nil if it has no bytes
	n   int
	err error
}

// readPiece reads once. The error of a terminal whose other end is closed is io.EOF.
func readPiece(fd uintptr) piece {
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

// pass passes the bytes to the function to, unless there was an error.
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

// streamEnded records that the output of one stream has ended.
func (p *process) streamEnded() {
	t := p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	p.draining--
	p.free()
	p.changed.Broadcast()
	t.prune()
}
