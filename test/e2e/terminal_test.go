//go:build system

package e2e

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// terminal is a shell on a terminal, such as the root shell that the minimal image
// has on its serial console.
type terminal struct {
	conn io.ReadWriteCloser
	seen strings.Builder
	runs int
}

// terminal attaches to the VM's console until the test ends or close.
func (w *world) terminal(t *testing.T, id string) *terminal {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	conn, err := w.client.VMConsole(ctx, id, false)
	if err != nil {
		cancel()
		t.Fatalf("cannot attach to the console: %v", err)
	}
	t.Cleanup(cancel)
	return &terminal{conn: conn}
}

func (c *terminal) close() { _ = c.conn.Close() }

// run runs a line and returns its output, which is found between two marks that the
// echo of the line does not have.
func (c *terminal) run(t *testing.T, format string, args ...any) string {
	t.Helper()
	c.runs++
	line := fmt.Sprintf(format, args...)
	c.write(t, fmt.Sprintf("echo begin$((%d)); %s; echo end$((%d))\n", c.runs, line, c.runs))
	begin, end := fmt.Sprintf("begin%d\r\n", c.runs), fmt.Sprintf("end%d\r\n", c.runs)
	_, text, _ := strings.Cut(c.await(t, end), begin)
	text, _, _ = strings.Cut(text, end)
	return strings.TrimSpace(strings.ReplaceAll(text, "\r", ""))
}

func (c *terminal) write(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		t.Fatalf("cannot type into the console: %v", err)
	}
}

// await reads until the console has shown mark, and returns its whole output.
func (c *terminal) await(t *testing.T, mark string) string {
	t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(c.seen.String(), mark) {
		n, err := c.conn.Read(buf)
		c.seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("the console ends with %v before it shows %q:\n%s", err, mark, c.seen.String())
		}
	}
	return c.seen.String()
}
