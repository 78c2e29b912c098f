//go:build linux && amd64

package firecracker

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The serial port is Firecracker's standard input and output: two named pipes in the
// run directory. The process has both ends of both open, so that neither ends when a
// daemon does.

// openConsole makes the pipes and opens them for the process.
func openConsole(dir string) (stdin, stdout *os.File, err error) {
	var files []*os.File
	for _, name := range []string{stdinPipe, stdoutPipe} {
		path := filepath.Join(dir, name)
		err := makePipe(path)
		var f *os.File
		if err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("cannot make the console: %w", err)
		}
		files = append(files, f)
	}
	return files[0], files[1], nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// openPipe opens a named pipe for reading. It does not wait for a writer.
func openPipe(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
}

// tail is the end of a console's output.
type tail struct {
	mu   sync.Mutex
	text []byte
	more chan struct{} // closed by the next add; nil while no call waits
}

const maxTail = 2048 // bytes

func (t *tail) add(data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, data...)
	if over := len(t.text) - maxTail; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	if t.more != nil && len(data) > 0 {
		close(t.more)
		t.more = nil
	}
}

// next returns a channel that is closed by the next output.
func (t *tail) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more == nil {
		t.more = make(chan struct{})
	}
	return t.more
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// ending is how a guest ended. Firecracker has no device that reports it: every guest
// asks for a reset. But Linux prints the reason as its last console line.
type ending string

const (
	endNone     ending = ""
	endPowerOff ending = "power-off"
	endReset    ending = "reset"
	endPanic    ending = "panic"
)

// endingOf finds the ending in the last lines of a console. After a panic Linux also
// prints that it reboots: the panic has precedence.
func endingOf(text string) (e ending, line string) {
	for _, c := range []struct {
		text string
		end  ending
	}{
		{"Kernel panic - not syncing", endPanic},
		{"reboot: Power down", endPowerOff},
		{"reboot: System halted", endPowerOff},
		{"reboot: Restarting system", endReset},
	} {
		if at := strings.LastIndex(text, c.text); at >= 0 {
			line, _, _ = strings.Cut(text[at:], "\n")
			return c.end, strings.TrimSpace(strings.ToValidUTF8(line, "?"))
		}
	}
	return endNone, ""
}

// consoleConn is one connection to the console.
type consoleConn struct {
	out, in *os.File // the guest's output and input
	tail    *tail
	ended   chan struct{} // closed when all output was read, or the connection was closed
	once    sync.Once
}

// dialConsole connects to the console; t gets a copy of what the connection reads.
func dialConsole(dir string, t *tail) (*consoleConn, error) {
	out, err := openPipe(filepath.Join(dir, stdoutPipe))
	if err != nil {
		return nil, err
	}
	in, err := os.OpenFile(filepath.Join(dir, stdinPipe), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	return &consoleConn{out: out, in: in, tail: t, ended: make(chan struct{})}, nil
}

func (c *consoleConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	c.tail.add(p[:n])
	if err != nil {
		c.end()
	}
	return n, err
}

func (c *consoleConn) end() { c.once.Do(func() { close(c.ended) }) }

func (c *consoleConn) Write(p []byte) (int, error) { return c.in.Write(p) }

// Close ends the connection; a Read in progress returns.
func (c *consoleConn) Close() error {
	c.end()
	_ = c.in.Close()
	return c.out.Close()
}

func (c *consoleConn) SetDeadline(t time.Time) error {
	if err := c.in.SetDeadline(t); err != nil {
		return err
	}
	return c.out.SetDeadline(t)
}

func (c *consoleConn) SetReadDeadline(t time.Time) error  { return c.out.SetReadDeadline(t) }
func (c *consoleConn) SetWriteDeadline(t time.Time) error { return c.in.SetWriteDeadline(t) }

func (c *consoleConn) LocalAddr() net.Addr  { return pipeAddr(stdinPipe) }
func (c *consoleConn) RemoteAddr() net.Addr { return pipeAddr(stdoutPipe) }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }
