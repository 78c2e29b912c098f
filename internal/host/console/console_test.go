package console

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns consoles with one open console, and the guest's end of it.
func open(t *testing.T, maxBytes int64) (*Consoles, net.Conn) {
	t.Helper()
	dir := t.TempDir()
	c := New(func(string) string { return dir }, maxBytes, slog.New(slog.DiscardHandler))
	host, guest := net.Pipe()
	err := c.Open("vm_a", func(context.Context) (net.Conn, error) { return host, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close("vm_a"); _ = guest.Close() })
	return c, guest
}

func say(t *testing.T, guest net.Conn, text string) {
	t.Helper()
	if _, err := guest.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func logOf(t *testing.T, c *Consoles, tail int) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Log(t.Context(), "vm_a", vm.LogQuery{Tail: tail}, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTheLogOutlivesTheConsole(t *testing.T) {
	c, guest := open(t, 1<<20)
	say(t, guest, "one\ntwo\nthree\n")
	c.Close("vm_a")
	for tail, want := range map[int]string{-1: "one\ntwo\nthree\n", 0: "", 1: "three\n", 2: "two\nthree\n", 9: "one\ntwo\nthree\n"} {
		if got := logOf(t, c, tail); got != want {
			t.Errorf("tail %d: got %q, want %q", tail, got, want)
		}
	}
}

func TestTheLogIsBounded(t *testing.T) {
	const maxBytes = 4096
	c, guest := open(t, maxBytes)
	line := strings.Repeat("x", 99) + "\n"
	for range 500 {
		say(t, guest, line)
	}
	say(t, guest, "the end\n")
	c.Close("vm_a")
	for _, name := range []string{logName, oldName} {
		st, err := os.Stat(filepath.Join(c.dir(""), name))
		if err != nil || st.Size() > maxBytes || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if got := logOf(t, c, -1); len(got) > 2*maxBytes || !strings.HasSuffix(got, "x\nthe end\n") {
		t.Errorf("the log has %d bytes and ends with %q", len(got), got[max(0, len(got)-20):])
	}
}

func TestFollowersGetHistoryAndNewOutputWithoutGap(t *testing.T) {
	c, guest := open(t, 1<<20)
	say(t, guest, "past\n")
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- c.Log(context.Background(), "vm_a", vm.LogQuery{Tail: -1, Follow: true}, writer)
		_ = writer.Close()
	}()
	first := make([]byte, len("past\n"))
	if _, err := io.ReadFull(reader, first); err != nil || string(first) != "past\n" {
		t.Fatalf("got %q, %v", first, err)
	}
	say(t, guest, "present\n")
	next := make([]byte, len("present\n"))
	if _, err := io.ReadFull(reader, next); err != nil || string(next) != "present\n" {
		t.Fatalf("got %q, %v", next, err)
	}
	c.Close("vm_a")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOneWriterManyReaders(t *testing.T) {
	c, guest := open(t, 1<<20)
	say(t, guest, "login: ")
	writer, err := c.Attach(t.Context(), "vm_a", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(t.Context(), "vm_a", false); !errs.HasCode(err, "console_in_use") {
		t.Errorf("a second writer: %v", err)
	}
	reader, err := c.Attach(t.Context(), "vm_a", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range []io.ReadWriteCloser{writer, reader} {
		text := make([]byte, len("login: "))
		if _, err := io.ReadFull(client, text); err != nil || string(text) != "login: " {
			t.Errorf("scrollback: %q, %v", text, err)
		}
	}
	if _, err := reader.Write([]byte("x")); !errs.Is(err, errs.Forbidden) {
		t.Errorf("a reader wrote: %v", err)
	}
	typed := make(chan string, 1)
	go func() {
		b := make([]byte, 5)
		_, _ = io.ReadFull(guest, b)
		typed <- string(b)
	}()
	if _, err := writer.Write([]byte("root\n")); err != nil {
		t.Fatal(err)
	}
	if got := <-typed; got != "root\n" {
		t.Errorf("the guest read %q", got)
	}
	for _, client := range []io.Closer{writer, writer, reader} {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := c.Attach(t.Context(), "vm_a", false)
	if err != nil {
		t.Fatalf("the writer was not released: %v", err)
	}
	_ = again.Close()
}

func TestASlowWatcherDelaysNoGuest(t *testing.T) {
	c, guest := open(t, 1<<20)
	slow, err := c.Attach(t.Context(), "vm_a", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 2 * watcherQueue {
		say(t, guest, "line\n")
	}
	queued := make([]byte, watcherQueue*len("line\n"))
	if _, err := io.ReadFull(slow, queued); err != nil {
		t.Fatal(err)
	}
	say(t, guest, "after\n")
	c.Close("vm_a")
	seen, err := io.ReadAll(slow)
	if err != nil || !bytes.Contains(seen, []byte("output was lost")) {
		t.Errorf("no mark of lost output: %d bytes, %v", len(seen), err)
	}
}

func TestLastLines(t *testing.T) {
	for _, c := range []struct {
		text string
		tail int
		want string
	}{
		{"", 3, ""},
		{"a", 1, "a"},
		{"a\nb", 1, "b"},
		{"a\n\n", 1, "\n"},
		{"a\nb\n", 0, ""},
	} {
		if got := string(lastLines([]byte(c.text), c.tail)); got != c.want {
			t.Errorf("last %d lines of %q: got %q, want %q", c.tail, c.text, got, c.want)
		}
	}
}
