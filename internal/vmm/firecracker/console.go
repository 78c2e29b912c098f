//go:build linux && amd64

package firecracker

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The serial port is Firecracker's standard input and output: two named pipes
// in the run directory. The process holds both ends of both, so that neither
// ends when a daemon does.

// openConsole makes the pipes and opens them as the process is to have them.
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

// openPipe opens a pipe of ours for reading. It does not wait for a writer.
func openPipe(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
}

// tail is the end of what a guest wrote to its console.
type tail struct {
	mu   sync.Mutex
	text []byte
	more chan struct{} // closed with the next that comes; nil while nobody waits
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

// next is closed when more comes.
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

// ending is how a guest says that it ends. Firecracker has no device by which
// it could tell: a guest asks for a reset, whatever it means by it. Linux says
// what it means as its last words on the console.
type ending string

const (
	endNone     ending = ""
	endPowerOff ending = "power-off"
	endReset    ending = "reset"
	endPanic    ending = "panic"
)

// endingOf reads a guest's last words. After a panic Linux says that it will
// reboot, too: so the panic counts.
func endingOf(text string) (e ending, line string) {
	for _, c := range []struct {
		words string
		end   ending
	}{
		{"Kernel panic - not syncing", endPanic},
		{"reboot: Power down", endPowerOff},
		{"reboot: System halted", endPowerOff},
		{"reboot: Restarting system", endReset},
	} {
		if at := strings.LastIndex(text, c.words); at >= 0 {
			line, _, _ = strings.Cut(text[at:], "\n")
			return c.end, strings.TrimSpace(strings.ToValidUTF8(line, "?"))
		}
	}
	return endNone, ""
}

// consoleConn is one connection to the console.
type consoleConn struct {
	out, in *os.File // what the guest says, and what it is told
	heard   *tail
	ended   chan struct{} // closed when all that the guest said was read, or nobody will read it
	once    sync.Once
}

func dialConsole(dir string, heard *tail) (*consoleConn, error) {
	out, err := openPipe(filepath.Join(dir, stdoutPipe))
	if err != nil {
		return nil, err
	}
	in, err := os.OpenFile(filepath.Join(dir, stdinPipe), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	return &consoleConn{out: out, in: in, heard: heard, ended: make(chan struct{})}, nil
}

func (c *consoleConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	c.heard.add(p[:n])
	if err != nil {
		c.end()
	}
	return n, err
}

func (c *consoleConn) end() { c.once.Do(func() { close(c.ended) }) }

func (c *consoleConn) Write(p []byte) (int, error) { return c.in.Write(p) }

// Close ends the connection; a Read under way returns.
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

// drain reads what a process that is gone has left in its console.
func drain(out io.Reader, heard *tail) {
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		heard.add(buf[:n])
		if err != nil {
			return
		}
	}
}
