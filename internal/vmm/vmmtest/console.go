package vmmtest

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Console speaks with a guest in lines.
type Console struct {
	t     *testing.T
	conn  net.Conn
	lines chan string // closed when the connection ends
	heard []string

	mu   sync.Mutex
	half []byte // of a line whose end has not come yet
}

// DialConsole connects to the machine's serial console until the test ends.
func DialConsole(t *testing.T, m vmm.Machine) *Console {
	t.Helper()
	return dialLines(t, m, vmm.ChannelConsole)
}

func dialLines(t *testing.T, m vmm.Machine, ch vmm.Channel) *Console {
	t.Helper()
	began := time.Now()
	conn, err := m.Dial(t.Context(), ch)
	if err != nil {
		t.Fatalf("cannot dial the %s: %v", ch, err)
	}
	c := &Console{t: t, conn: conn, lines: make(chan string, 10_000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(c.lines)
		c.read(began)
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return c
}

func (c *Console) read(began time.Time) {
	in := bufio.NewReader(c.conn)
	if _, err := in.Peek(1); err == nil {
		c.t.Logf("first byte %s after the dial", time.Since(began).Round(time.Millisecond))
	}
	for {
		b, err := in.ReadByte()
		if err != nil {
			return
		}
		if line, whole := c.add(b); whole {
			c.lines <- strings.TrimRight(line, "\r")
		}
	}
}

// add takes in a byte, and returns the line of which it is the end.
func (c *Console) add(b byte) (line string, whole bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b != '\n' {
		c.half = append(c.half, b)
		return "", false
	}
	line, c.half = string(c.half), c.half[:0]
	return line, true
}

// isAmidLine reports whether a line has begun and not ended yet.
func (c *Console) isAmidLine() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.half) > 0
}

// Say sends a line.
func (c *Console) Say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\n", line); err != nil {
		c.t.Fatalf("cannot say %q: %v", line, err)
	}
}

// Expect waits for a line with prefix, wherever the kernel's own
// words may have pushed it, and returns the rest of it.
func (c *Console) Expect(prefix string) string {
	c.t.Helper()
	late := time.After(patience)
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.t.Fatalf("the connection ended before %q; heard:\n%s", prefix, strings.Join(c.heard, "\n"))
			}
			c.heard = append(c.heard, line)
			if _, rest, found := strings.Cut(line, prefix); found {
				return rest
			}
		case <-late:
			c.t.Fatalf("no %q within %s; heard:\n%s", prefix, patience, strings.Join(c.heard, "\n"))
		}
	}
}

// sayUntil says a line until it is answered, as the agent's protocol does at the
// beginning: what is said before the guest listens may be lost.
func (c *Console) sayUntil(line, answer string) {
	c.t.Helper()
	late := time.After(patience)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		c.Say(line)
		for waits := true; waits; {
			select {
			case said, ok := <-c.lines:
				if !ok {
					c.t.Fatalf("the connection ended before %q", answer)
				}
				if strings.Contains(said, answer) {
					return
				}
			case <-again.C:
				waits = false
			case <-late:
				c.t.Fatalf("no %q within %s", answer, patience)
			}
		}
	}
}

// requireNoSilence says a line to who may be gone: either it is answered, or the
// connection ends.
func (c *Console) requireNoSilence(line, answer string) {
	c.t.Helper()
	_, _ = fmt.Fprintf(c.conn, "%s\n", line) // it has ended
	late := time.After(patience)
	for {
		select {
		case said, ok := <-c.lines:
			if !ok || strings.Contains(said, answer) {
				return
			}
		case <-late:
			c.t.Fatalf("%q is not answered within %s, and the connection does not end", line, patience)
		}
	}
}

// untilSilent returns the last line before a silence of that length; it may
// have been expected already.
func (c *Console) untilSilent(length time.Duration) string {
	c.t.Helper()
	last := c.heard[len(c.heard)-1]
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.t.Fatal("the connection ended")
			}
			last = line
		case <-time.After(length):
			return last
		}
	}
	c.t.Fatal("it is never silent")
	return ""
}

// expectEnd waits for the other side to hang up.
func (c *Console) expectEnd() {
	c.t.Helper()
	late := time.After(patience)
	for {
		select {
		case _, ok := <-c.lines:
			if !ok {
				return
			}
		case <-late:
			c.t.Fatal("the connection does not end")
		}
	}
}

// nextTick returns the line that follows a tick.
func nextTick(t *testing.T, line string) string {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(line, "tick "))
	if err != nil {
		t.Fatalf("%q is no tick", line)
	}
	return fmt.Sprintf("tick %d", n+1)
}
