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

// port is the open virtio-serial port. It stays open from one host to the next.
type port struct {
	file *os.File
	raw  syscall.RawConn
	last []byte // what the last session read last, see portConn.Read
}

// maxLast bounds port.last, in bytes: many handshake lines.
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

// conn returns the port as the connection of the next host. The earlier
// connection must have been closed and left.
func (p *port) conn() (*portConn, error) {
	if err := p.file.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("the port to the host cannot be waited for: %w", err)
	}
	again := p.last
	p.last = nil
	return &portConn{port: p, again: again}, nil
}

// portConn is one host's use of the port. An open port reads as empty while no
// host is there. Before a session is established that means: not yet; then, it
// means that the host has left.
type portConn struct {
	port        *port
	again       []byte // to be read once more, before anything new
	established bool
}

// Read waits for bytes from the host.
//
// When one host follows another at once, nothing tells the two apart: the first
// line of the new one's handshake ends the old session as rubbish. So the next
// connection sees a session's last bytes again. They do no harm: an answer to
// a host that is gone is dropped by the present one.
func (c *portConn) Read(p []byte) (int, error) {
	if c.established {
		n, err := c.port.file.Read(p)
		if n > 0 {
			c.port.last = append(c.port.last[:0], p[max(0, n-maxLast):n]...)
		}
		return n, err
	}
	if len(c.again) > 0 {
		n := copy(p, c.again)
		c.again = c.again[n:]
		return n, nil
	}
	n := 0
	var failed error
	err := c.port.raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), p)
		// Empty: wait for the next event of the port, be it a host or bytes.
		return n > 0 || failed != nil && !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if failed != nil && n <= 0 {
		err = failed
	}
	return max(n, 0), err
}

// Write sends to the host; it waits for one that is there.
func (c *portConn) Write(p []byte) (int, error) { return c.port.file.Write(p) }

// Close ends reads and writes under way, and leaves the port open.
func (c *portConn) Close() error { return c.port.file.SetDeadline(time.Now()) }

var _ io.ReadWriteCloser = (*portConn)(nil)
