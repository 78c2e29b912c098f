package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// portName is what the host calls the virtio-serial port of the agent.
const portName = "hatch.agent.0"

// port is the open virtio-serial port. It stays open from one connection to the next.
type port struct {
	file *os.File
	raw  syscall.RawConn
	last []byte // the last bytes that the previous session read; see portConn.Read
}

// maxLast limits port.last, in bytes. It has space for several handshake lines.
const maxLast = 4 << 10

// openPort waits for the port to appear and opens it.
func openPort() (*port, error) {
	devices, err := uevent.Listen()
	if err != nil {
		return nil, err
	}
	defer func() { _ = devices.Close() }()
	path := ""
	devices.Await(-1, func() bool {
		path = findPort("/sys", "/dev")
		return path != ""
	})
	return newPort(path)
}

func newPort(path string) (*port, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the port to the host: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &port{file: file, raw: raw}, nil
}

// findPort returns the device file of the port, or "".
func findPort(sys, dev string) string {
	names, err := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	if err != nil {
		return ""
	}
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != portName {
			continue
		}
		device := filepath.Join(dev, filepath.Base(filepath.Dir(path)))
		if _, err := os.Stat(device); err == nil {
			return device
		}
	}
	return ""
}

func (p *port) Close() error { return p.file.Close() }

// portConn is one connection of a host through the port. While no host has the other
// end open, reads return 0 bytes. Before the handshake that means that no host has
// connected yet, later that the host has disconnected.
type portConn struct {
	port        *port
	replay      []byte // the last bytes of the previous session, to be read first
	established bool
}

// Read waits for bytes from the host.
//
// The port does not show when one hatchd connects right after another has
// disconnected: the old session reads the first line of the new handshake, and ends
// because that is no frame. So the next connection reads the previous session's last
// bytes again. If they came from the old hatchd, the new one drops the answer.
func (c *portConn) Read(p []byte) (int, error) {
	if c.established {
		n, err := c.port.file.Read(p)
		if n > 0 {
			c.port.last = append(c.port.last[:0], p[max(0, n-maxLast):n]...)
		}
		return n, err
	}
	if len(c.replay) > 0 {
		n := copy(p, c.replay)
		c.replay = c.replay[n:]
		return n, nil
	}
	n := 0
	var failed error
	err := c.port.raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), p)
		// Without bytes, wait for the next event: a host opens the port, or sends.
		return n > 0 || failed != nil && !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if failed != nil && n <= 0 {
		err = failed
	}
	return max(n, 0), err
}

// Write sends to the host. It blocks while no host has the port open.
func (c *portConn) Write(p []byte) (int, error) { return c.port.file.Write(p) }

// Close interrupts Read and Write, and leaves the port open.
func (c *portConn) Close() error { return c.port.file.SetDeadline(time.Now()) }

var _ io.ReadWriteCloser = (*portConn)(nil)
