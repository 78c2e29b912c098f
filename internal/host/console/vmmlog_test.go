package console

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/vmm"
)

func vmmLog(t *testing.T, c *Consoles, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(c.dir(""), vmm.LogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestVMMLogOfAStoppedVM(t *testing.T) {
	dir := t.TempDir()
	c := New(func(string) string { return dir }, 1<<20, nil)
	read := func(tail int, follow bool) string {
		var out bytes.Buffer
		if err := c.VMMLog(t.Context(), "vm_a", tail, follow, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := read(-1, true); got != "" {
		t.Errorf("a VM that never ran: %q", got)
	}
	vmmLog(t, c, "one\ntwo\n")
	if got := read(-1, false); got != "one\ntwo\n" {
		t.Errorf("all of it: %q", got)
	}
	if got := read(1, true); got != "two\n" { // and returns: there is no VMM
		t.Errorf("the last line, followed: %q", got)
	}
}

func TestVMMLogIsFollowedUntilTheVMEnds(t *testing.T) {
	c, _ := open(t, 1<<20)
	vmmLog(t, c, "one\n")
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- c.VMMLog(context.Background(), "vm_a", -1, true, writer)
		_ = writer.Close()
	}()
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(reader, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	expect("one\n")
	vmmLog(t, c, "two\n")
	expect("two\n")
	vmmLog(t, c, "last line\n")
	c.Close("vm_a")
	expect("last line\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}
