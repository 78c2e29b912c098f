package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// VsockPort is where a host finds the agent if it has no virtio-serial port.
const VsockPort = 1024

// serveVsock serves hosts that come through a virtual socket. A guest without
// such a device has nobody who comes.
func (a *Agent) serveVsock(ctx context.Context) {
	l, err := listenVsock(VsockPort)
	if err != nil {
		a.log.Debug("no host can come through a virtual socket", "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() { _ = l.Close() }()
	if err := a.serveStreams(ctx, l.accept); ctx.Err() == nil {
		a.log.Error("the virtual socket failed", "err", err)
	}
}

// serveStreams serves one host at a time: the next one ends the session of the
// last. It returns when none can be accepted any more.
func (a *Agent) serveStreams(ctx context.Context, accept func() (io.ReadWriteCloser, error)) error {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	var last io.Closer
	for {
		conn, err := accept()
		if last != nil {
			_ = last.Close()
			sessions.Wait()
		}
		if err != nil {
			return err
		}
		last = conn
		sessions.Go(func() { a.serveStream(ctx, conn) })
	}
}

func (a *Agent) serveStream(ctx context.Context, conn io.ReadWriteCloser) {
	server, err := wire.Accept(conn)
	if err != nil {
		a.log.Debug("a host came and left", "err", err)
		_ = conn.Close()
		return
	}
	err = server.Run(ctx, a)
	a.log.Debug("the host is gone", "err", err)
}

// vsockListener listens on a virtual socket, in Go's poller.
type vsockListener struct {
	file *os.File
	raw  syscall.RawConn
}

func listenVsock(port uint32) (*vsockListener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "vsock")
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &vsockListener{file: file, raw: raw}, nil
}

func (l *vsockListener) Close() error { return l.file.Close() }

// accept returns the next connection of the host's. One that a program in the
// guest has made is closed at once: the agent obeys only the host.
func (l *vsockListener) accept() (io.ReadWriteCloser, error) {
	for {
		fd, from, err := l.next()
		if err != nil {
			return nil, fmt.Errorf("cannot accept a host: %w", err)
		}
		if !isHost(from) {
			_ = unix.Close(fd)
			continue
		}
		return os.NewFile(uintptr(fd), "host"), nil
	}
}

func (l *vsockListener) next() (fd int, from unix.Sockaddr, err error) {
	waitErr := l.raw.Read(func(listener uintptr) bool {
		fd, from, err = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waitErr != nil {
		return -1, nil, waitErr
	}
	return fd, from, err
}

func isHost(from unix.Sockaddr) bool {
	vm, ok := from.(*unix.SockaddrVM)
	return ok && vm.CID == unix.VMADDR_CID_HOST
}
