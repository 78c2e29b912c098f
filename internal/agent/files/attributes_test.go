package files

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestExtendedAttributes packs attributes, unpacks them again, and looks at those that are
// not meant for another owner or system.
func TestExtendedAttributes(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(from+"/d/e", 0o755))
	must(t, os.WriteFile(from+"/d/f", []byte("f"), 0o644))
	capabilities := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw+ep
	for name, value := range map[string]string{"user.note": "binary \x00\xff", "user.empty": "", capability: capabilities, "trusted.here": "x"} {
		must(t, unix.Setxattr(from+"/d/f", name, []byte(value), 0))
	}
	must(t, unix.Setxattr(from+"/d/e", "user.of", []byte("a directory"), 0))
	var archive buffer
	f := New("/")
	must(t, f.ReadTree(t.Context(), wire.PathArgs{Path: []byte(from + "/d")}, func() error { return nil }, &archive))
	packed := archive.Bytes()
	must(t, f.WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, bytes.NewReader(packed)))
	want := map[string]string{"user.note": "binary \x00\xff", "user.empty": "", capability: capabilities, "trusted.here": "none"}
	for name, value := range want {
		if got := attributeOf(to+"/d/f", name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if got := attributeOf(to+"/d/e", "user.of"); got != "a directory" {
		t.Errorf("that of a directory is %q", got)
	}
	must(t, f.WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to), Owner: new("0")}, bytes.NewReader(packed)))
	if note, caps := attributeOf(to+"/d/f", "user.note"), attributeOf(to+"/d/f", capability); note != want["user.note"] || caps != "none" {
		t.Errorf("for another owner: %q, %q", note, caps)
	}
}

func attributeOf(path, name string) string {
	value := make([]byte, 100)
	n, err := unix.Getxattr(path, name, value)
	if err != nil {
		return "none"
	}
	return string(value[:n])
}

// TestUnpackReplacesFilesOnceComplete breaks a transfer in the middle of a file.
func TestUnpackReplacesFilesOnceComplete(t *testing.T) {
	to := t.TempDir()
	must(t, os.WriteFile(to+"/f", []byte("old"), 0o600))
	must(t, os.WriteFile(to+"/"+partialPrefix+"0", []byte("left by a killed agent"), 0o600))
	packed := pack(t, file("f")).Bytes()
	broken := io.MultiReader(bytes.NewReader(packed[:512]), iotest.ErrReader(errors.New("broken")))
	if err := New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, broken); err == nil {
		t.Error("it counts as complete")
	}
	entries, err := os.ReadDir(to)
	if content, readErr := os.ReadFile(to + "/f"); err != nil || readErr != nil || len(entries) != 1 || string(content) != "old" {
		t.Errorf("left are %v, with %q", entries, content)
	}
}
