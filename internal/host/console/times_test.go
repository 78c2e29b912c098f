package console

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// asked returns the lines that q asks for.
func asked(t *testing.T, c *Consoles, q vm.LogQuery) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Log(t.Context(), "vm_a", q, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func requireTimes(t *testing.T) func(error) {
	return func(err error) { t.Errorf("the times have failed: %v", err) }
}

// In a bubble of synctest it is midnight, 1 January 2000.
func TestLinesHaveTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := open(t, 1<<20)
		begin := time.Now()
		for _, text := range []string{"one\n", "tw", "o\nthree\nfo", "ur"} {
			say(t, guest, text)
			synctest.Wait()
			<-time.After(time.Minute)
		}
		const whole = "2000-01-01T00:00:00.000Z one\n2000-01-01T00:01:00.000Z two\n2000-01-01T00:02:00.000Z three\n2000-01-01T00:02:00.000Z four"
		reader, writer := io.Pipe()
		go func() {
			_ = c.Log(context.Background(), "vm_a", vm.LogQuery{Tail: 1, Follow: true, Timestamps: true}, writer)
			_ = writer.Close()
		}()
		followed := make(chan string, 1)
		go func() { text, _ := io.ReadAll(reader); followed <- string(text) }()
		synctest.Wait()
		say(t, guest, "!\nfive\n")
		synctest.Wait()
		for name, check := range map[string]struct {
			q    vm.LogQuery
			want string
		}{
			"as they are":       {vm.LogQuery{Tail: -1}, "one\ntwo\nthree\nfour!\nfive\n"},
			"with times":        {vm.LogQuery{Tail: -1, Timestamps: true}, whole + "!\n2000-01-01T00:04:00.000Z five\n"},
			"since a time":      {vm.LogQuery{Tail: -1, Since: begin.Add(61 * time.Second)}, "three\nfour!\nfive\n"},
			"since the same":    {vm.LogQuery{Tail: -1, Since: begin.Add(time.Minute)}, "two\nthree\nfour!\nfive\n"},
			"the last of those": {vm.LogQuery{Tail: 1, Since: begin.Add(time.Minute), Timestamps: true}, "2000-01-01T00:04:00.000Z five\n"},
			"since later":       {vm.LogQuery{Tail: -1, Since: begin.Add(time.Hour)}, ""},
		} {
			if got := asked(t, c, check.q); got != check.want {
				t.Errorf("%s: %q, want %q", name, got, check.want)
			}
		}
		c.Close("vm_a")
		if got, want := <-followed, "2000-01-01T00:02:00.000Z four!\n2000-01-01T00:04:00.000Z five\n"; got != want {
			t.Errorf("followed %q, want %q", got, want)
		}
		if got := asked(t, c, vm.LogQuery{Tail: 1, Timestamps: true}); got != "2000-01-01T00:04:00.000Z five\n" {
			t.Errorf("when closed: %q", got)
		}
	})
}

// Lines that were in progress when a follower began are of an earlier time.
func TestFollowersSinceNowGetNewLinesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := open(t, 1<<20)
		say(t, guest, "old\nhal")
		synctest.Wait()
		<-time.After(time.Second)
		var out bytes.Buffer
		done := make(chan struct{})
		go func() {
			_ = c.Log(context.Background(), "vm_a", vm.LogQuery{Tail: -1, Follow: true, Since: time.Now()}, &out)
			close(done)
		}()
		synctest.Wait()
		say(t, guest, "f\nnew\n")
		synctest.Wait()
		c.Close("vm_a")
		if <-done; out.String() != "new\n" {
			t.Errorf("got %q", out.String())
		}
	})
}

// A guest whose lines are short cannot make the times larger than a part of the log, and
// what it can read in its log is unchanged.
func TestTimesAreBounded(t *testing.T) {
	const maxBytes = 64 << 10
	l, err := openLog(t.TempDir(), maxBytes, requireTimes(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for i := range 3 * maxBytes {
		if err := l.write([]byte("\n"), time.UnixMilli(int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{logName, oldName} {
		st, err := os.Stat(filepath.Join(l.dir, name+timesSuffix))
		if most := int64(recordSize * (2 + firstTimes + maxBytes/bytesOfTime)); err != nil || st.Size() > most || st.Size() < recordSize*firstTimes || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	out := &bytes.Buffer{}
	if err := writeTail(&lines{to: out, stamps: true}, l.history(), 1); err != nil || !strings.HasSuffix(out.String(), "Z \n") {
		t.Errorf("%q, %v", out, err)
	}
	// And one that never ends a line has one.
	l, err = openLog(t.TempDir(), maxBytes, requireTimes(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for range 1000 {
		if err := l.write([]byte("x"), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if l.times.records != 2 {
		t.Errorf("%d records", l.times.records)
	}
}

// After a crash the times may be of another log, or end within a record, or name what
// was never written.
func TestDamagedTimes(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, damage := range map[string]func(t *testing.T, times string, log os.FileInfo){
		"of another log": func(t *testing.T, times string, log os.FileInfo) { overwrite(t, times, inode(log)+1, 0, 0, 7) },
		"none":           func(t *testing.T, times string, _ os.FileInfo) { _ = os.Remove(times) },
		"half a record": func(t *testing.T, times string, log os.FileInfo) {
			overwrite(t, times, inode(log), 0)
			_ = os.Truncate(times, recordSize-1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := openLog(dir, 1<<20, requireTimes(t))
			if err == nil {
				err = l.write([]byte("first\n"), at)
			}
			if err != nil {
				t.Fatal(err)
			}
			st, _ := l.file.Stat()
			_ = l.close()
			damage(t, filepath.Join(dir, logName+timesSuffix), st)
			c := New(func(string) string { return dir }, 1<<20, slog.New(slog.DiscardHandler))
			if got := asked(t, c, vm.LogQuery{Tail: -1, Timestamps: true}); got != "- first\n" {
				t.Errorf("before the next start: %q", got)
			}
			if l, err = openLog(dir, 1<<20, requireTimes(t)); err == nil {
				err = l.write([]byte("second\n"), at)
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = l.close()
			if got := asked(t, c, vm.LogQuery{Tail: -1, Timestamps: true}); got != "- first\n2026-01-02T03:04:05.000Z second\n" {
				t.Errorf("after it: %q", got)
			}
		})
	}
}

// What a start drops does not come back when the log has grown.
func TestTimesOfLostOutputAreDropped(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l, err := openLog(dir, 1<<20, requireTimes(t))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.write([]byte("a\n"), at)
	st, _ := l.file.Stat()
	_ = l.close()
	overwrite(t, filepath.Join(dir, logName+timesSuffix), inode(st), 0, 0, uint64(at.UnixMilli()), 2, 1, 9, 1)
	if l, err = openLog(dir, 1<<20, requireTimes(t)); err != nil {
		t.Fatal(err)
	}
	_ = l.write([]byte(strings.Repeat("b\n", 8)), at) // of one time, up to byte 18
	_ = l.close()
	c := New(func(string) string { return dir }, 1<<20, slog.New(slog.DiscardHandler))
	want := "2026-01-02T03:04:05.000Z a\n" + strings.Repeat("2026-01-02T03:04:05.000Z b\n", 8)
	if got := asked(t, c, vm.LogQuery{Tail: -1, Timestamps: true}); got != want {
		t.Errorf("got %q", got)
	}
}

// The log goes on when its times cannot be opened, renamed or written.
func TestLogWithoutTimes(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string) (harm func(*logFile)){
		"they cannot be opened": func(t *testing.T, dir string) func(*logFile) {
			block(t, filepath.Join(dir, logName+timesSuffix))
			return func(*logFile) {}
		},
		"nor when it has become the older": func(t *testing.T, dir string) func(*logFile) {
			block(t, filepath.Join(dir, oldName+timesSuffix))
			block(t, filepath.Join(dir, logName+timesSuffix))
			return func(*logFile) {}
		},
		"they cannot be renamed": func(t *testing.T, dir string) func(*logFile) {
			block(t, filepath.Join(dir, oldName+timesSuffix))
			return func(*logFile) {}
		},
		"they cannot be written": func(*testing.T, string) func(*logFile) {
			return func(l *logFile) { _ = l.times.file.Close() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			harm := damage(t, dir)
			told := 0
			l, err := openLog(dir, 16, func(error) { told++ })
			if err != nil {
				t.Fatal(err)
			}
			harm(l)
			for _, text := range []string{"one\n", "two\n", "more than is left\n", "last\n"} {
				if err := l.write([]byte(text), time.Now()); err != nil {
					t.Errorf("%q: %v", text, err)
				}
			}
			if err := l.close(); err != nil {
				t.Error(err)
			}
			c := New(func(string) string { return dir }, 16, slog.New(slog.DiscardHandler))
			if got := asked(t, c, vm.LogQuery{Tail: -1}); got != "more than is left\nlast\n" || told == 0 {
				t.Errorf("%q, told %d times", got, told)
			}
		})
	}
}

// block puts a directory where a file should be, and something in it.
func block(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestLackOfTimesIsLoggedOnce(t *testing.T) {
	dir := t.TempDir()
	block(t, filepath.Join(dir, oldName+timesSuffix))
	block(t, filepath.Join(dir, logName+timesSuffix))
	var logged bytes.Buffer
	c := New(func(string) string { return dir }, 8, slog.New(slog.NewTextHandler(&logged, nil)))
	ours, guest := net.Pipe()
	if err := c.Open("vm_a", func(context.Context) (net.Conn, error) { return ours, nil }); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		say(t, guest, "a line\n")
	}
	c.Close("vm_a")
	if got := strings.Count(logged.String(), "cannot keep the times of the console log"); got != 1 || strings.Count(logged.String(), "\n") != 1 {
		t.Errorf("logged: %s", logged.String())
	}
}

func overwrite(t *testing.T, name string, numbers ...uint64) {
	t.Helper()
	var text []byte
	for _, n := range numbers {
		text = binary.LittleEndian.AppendUint64(text, n)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzTimes(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f"), uint16(9))
	f.Fuzz(func(t *testing.T, text []byte, size uint16) {
		last := int64(-1)
		for _, m := range parseTimes(text, 1, int64(size)) {
			if m.from <= last || m.from >= int64(size) {
				t.Fatalf("%v after %d in a log of %d bytes", m, last, size)
			}
			last = m.from
			_ = stampOf(m.at)
		}
	})
}
