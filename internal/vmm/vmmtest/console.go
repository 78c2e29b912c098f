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

// Console sends lines to a guest and reads lines from it.
type Console struct {
	t     *testing.T
	conn  net.Conn
	lines chan string // closed when the connection ends
	seen  []string

	mu   sync.Mutex
	half []byte // the beginning of a line that is not complete yet
}

// DialConsole connects to the machine's serial console until the end of the test.
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
		if line, complete := c.add(b); complete {
			c.lines <- strings.TrimRight(line, "\r")
		}
	}
}

// add adds a byte, and returns the line that it completes.
func (c *Console) add(b byte) (line string, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b != '\n' {
		c.half = append(c.half, b)
		return "", false
	}
	line, c.half = string(c.half), c.half[:0]
	return line, true
}

// isInLine reports whether the output so far ends with an incomplete line.
func (c *Console) isInLine() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.half) > 0
}

// Say sends a line.
func (c *Console) Say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\n", line); err != nil {
		c.t.Fatalf("cannot send %q: %v", line, err)
	}
}

// Expect waits for a line that contains prefix, and returns the rest of it. Messages of
// the guest's kernel may come before prefix.
func (c *Console) Expect(prefix string) string {
	c.t.Helper()
	tooLate := time.After(timeout)
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.t.Fatalf("the connection ended before %q; output:\n%s", prefix, strings.Join(c.seen, "\n"))
			}
			c.seen = append(c.seen, line)
			if _, rest, found := strings.Cut(line, prefix); found {
				return rest
			}
		case <-tooLate:
			c.t.Fatalf("no %q within %s; output:\n%s", prefix, timeout, strings.Join(c.seen, "\n"))
		}
	}
}

// sayUntilAnswered sends a line every second until the guest answers it, as the agent's
// protocol does at the beginning: a line may be lost before the guest listens.
func (c *Console) sayUntilAnswered(line, answer string) {
	c.t.Helper()
	tooLate := time.After(timeout)
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		c.Say(line)
		for waits := true; waits; {
			select {
			case got, ok := <-c.lines:
				if !ok {
					c.t.Fatalf("the connection ended before %q", answer)
				}
				if strings.Contains(got, answer) {
					return
				}
			case <-retry.C:
				waits = false
			case <-tooLate:
				c.t.Fatalf("no %q within %s", answer, timeout)
			}
		}
	}
}

// requireAnswerOrEnd sends a line on a connection that may have ended, and checks that
// either the guest answers or the connection ends.
func (c *Console) requireAnswerOrEnd(line, answer string) {
	c.t.Helper()
	_, _ = fmt.Fprintf(c.conn, "%s\n", line) // fails if it has ended
	tooLate := time.After(timeout)
	for {
		select {
		case got, ok := <-c.lines:
			if !ok || strings.Contains(got, answer) {
				return
			}
		case <-tooLate:
			c.t.Fatalf("%q is not answered within %s, and the connection does not end", line, timeout)
		}
	}
}

// awaitSilence waits until no line comes for that length, and returns the last line,
// which Expect may have read already.
func (c *Console) awaitSilence(length time.Duration) string {
	c.t.Helper()
	last := c.seen[len(c.seen)-1]
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); {
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
	c.t.Fatal("the guest never stops printing")
	return ""
}

// expectEnd waits until the other side closes the connection.
func (c *Console) expectEnd() {
	c.t.Helper()
	tooLate := time.After(timeout)
	for {
		select {
		case _, ok := <-c.lines:
			if !ok {
				return
			}
		case <-tooLate:
			c.t.Fatal("the connection does not end")
		}
	}
}

// nextTick returns the line that follows a tick.
func nextTick(t *testing.T, line string) string {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(line, "tick "))
	if err != nil {
		t.Fatalf("%q is not a tick", line)
	}
	return fmt.Sprintf("tick %d", n+1)
}
