package files

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestLastLines(t *testing.T) {
	long := strings.Repeat("0123456789\n", 20_000)
	for _, c := range []struct {
		text  string
		lines int64
		want  string
	}{
		{"", 5, ""},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"\n\n\n", 2, "\n\n"},
		{"one", 1, "one"},
		{long, 15_000, long[5_000*11:]},
		{long + "end", 1, "end"},
		{"x\n" + strings.Repeat("y", copyBuffer-1) + "\n", 1, strings.Repeat("y", copyBuffer-1) + "\n"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		put(t, path, c.text)
		var out buffer
		err := New("/").TailFile(t.Context(), wire.TailFileArgs{Path: []byte(path), Lines: c.lines}, func() error { return nil }, &out)
		if err != nil || out.String() != c.want {
			t.Errorf("%d lines of %.20q: %.40q (%d bytes), %v", c.lines, c.text, out.String(), out.Len(), err)
		}
	}
}

func FuzzLastLines(f *testing.F) {
	f.Add("a\nb\n\nc", int64(2), 1)
	f.Fuzz(func(t *testing.T, text string, lines int64, cut int) {
		if lines < 0 || lines > 1000 || len(text) == 0 {
			return
		}
		all := strings.SplitAfter(text, "\n")
		if all[len(all)-1] == "" {
			all = all[:len(all)-1]
		}
		want := strings.Join(all[max(0, len(all)-int(lines)):], "")
		from, left := lastLines([]byte(text), lines, true)
		if got := text[from:]; got != want {
			t.Errorf("%d of %q: %q, want %q", lines, text, got, want)
		}
		if left >= 0 && from != 0 {
			t.Errorf("%d of %q: %d lines are left, at %d", lines, text, left, from)
		}
	})
}

// stream is a wire.FileWriter that records flushed text.
type stream struct {
	buffer
	mu   sync.Mutex
	seen string
	more chan struct{}
}

func newStream() *stream { return &stream{more: make(chan struct{}, 1)} }

func (s *stream) Flush() error {
	s.mu.Lock()
	s.seen += s.String()
	s.mu.Unlock()
	s.Reset()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return nil
}

func (s *stream) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		seen := s.seen
		s.mu.Unlock()
		if seen == want {
			return
		}
		select {
		case <-s.more:
		case <-timeout:
			t.Fatalf("got %q, want %q", seen, want)
		}
	}
}

// following follows a file until the test ends or the file's directory is removed.
func following(t *testing.T, path string) (*stream, <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, began, ended := newStream(), make(chan struct{}), make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		args := wire.TailFileArgs{Path: []byte(path), Lines: 1, Follow: true}
		ended <- New("/").TailFile(ctx, args, func() error { close(began); return nil }, out)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	<-began
	return out, ended
}

func add(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
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

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestTailFollowsAcrossRotation(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/log"
	add(t, path, "1\n2\n")
	out, ended := following(t, path)
	out.await(t, "2\n")
	add(t, path, "3\n")
	out.await(t, "2\n3\n")
	rename(t, path, path+".1")
	add(t, path+".1", "4\n")
	out.await(t, "2\n3\n4\n")
	add(t, path, "the fifth\n")
	out.await(t, "2\n3\n4\nthe fifth\n")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	add(t, path, "6\n")
	out.await(t, "2\n3\n4\nthe fifth\n6\n")
	add(t, dir+"/new", "7\n")
	rename(t, dir+"/new", path)
	out.await(t, "2\n3\n4\nthe fifth\n6\n7\n")
	rename(t, dir, dir+".away")
	requireRefusal(t, <-ended, wire.CodeNotFound)
}

func TestTailFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/a/log", "a\n")
	put(t, dir+"/b/log", "b\n")
	if err := os.Symlink("a/log", dir+"/log"); err != nil {
		t.Fatal(err)
	}
	out, _ := following(t, dir+"/log")
	out.await(t, "a\n")
	if err := os.Symlink("b/log", dir+"/new"); err != nil {
		t.Fatal(err)
	}
	rename(t, dir+"/new", dir+"/log")
	out.await(t, "a\nb\n")
	add(t, dir+"/b/log", "c\n")
	out.await(t, "a\nb\nc\n")
}
