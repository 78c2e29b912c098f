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
	"github.com/hatchvm/hatch/internal/logkey"
)

// VsockPort is where the agent listens in guests without a virtio-serial port.
const VsockPort = 1024

// serveVsock serves hatchd on a virtual socket, if the guest has the device.
func (a *Agent) serveVsock(ctx context.Context) {
	l, err := listenVsock(VsockPort)
	if err != nil {
		a.log.Debug("vsock unavailable", logkey.Error, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() { _ = l.Close() }()
	if err := a.serveStreams(ctx, l.accept); ctx.Err() == nil {
		a.log.Error("vsock failed", logkey.Error, err)
	}
}

// serveStreams serves one connection at a time: a new one ends the session of the
// previous one. It returns when accept fails.
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
		sessions.Go(func() {
			server, err := wire.Accept(conn)
			if err != nil {
				a.log.Debug("handshake failed", logkey.Error, err)
				_ = conn.Close()
				return
			}
			err = server.Run(ctx, a)
			a.log.Debug("session ended", logkey.Error, err)
		})
	}
}

// vsockListener listens on a virtual socket, through Go's poller.
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

// accept returns the next connection from the host. It closes connections from
// programs in the guest.
func (l *vsockListener) accept() (io.ReadWriteCloser, error) {
	for {
		fd, from, err := l.next()
		if err != nil {
			return nil, fmt.Errorf("cannot accept a connection: %w", err)
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
