package awake

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clocks are clocks that the test sets.
type clocks struct{ at moment }

func newClocks() (*clocks, *Keeper) {
	c := &clocks{moment{day: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}}
	return c, &Keeper{now: func() moment { return c.at }}
}

// pass lets time pass while the guest runs.
func (c *clocks) pass(d time.Duration) { c.at = moment{c.at.day.Add(d), c.at.up + d} }

func requireLeft(t *testing.T, k *Keeper, want time.Duration) {
	t.Helper()
	if got := k.Left(); got != want {
		t.Errorf("%v are left, want %v", got, want)
	}
}

func TestLatestEndCounts(t *testing.T) {
	c, k := newClocks()
	requireLeft(t, k, 0)
	k.keep(10 * time.Minute)
	c.pass(4 * time.Minute)
	requireLeft(t, k, 6*time.Minute)
	k.keep(5 * time.Minute)
	requireLeft(t, k, 6*time.Minute)
	k.keep(7 * time.Minute)
	requireLeft(t, k, 7*time.Minute)
	c.pass(8 * time.Minute)
	requireLeft(t, k, 0)
	k.keep(time.Hour)
	k.keep(0)
	requireLeft(t, k, 0)
}

func TestTimeLeftByBothClocks(t *testing.T) {
	c, k := newClocks()
	k.keep(time.Hour)
	c.at.day = c.at.day.Add(20 * time.Minute) // the guest slept
	requireLeft(t, k, 40*time.Minute)
	k.keep(time.Hour)
	c.at.day = c.at.day.Add(-1000 * time.Hour) // the clock was put back
	requireLeft(t, k, time.Hour)
	c.pass(time.Hour)
	requireLeft(t, k, 0)
}

func TestAnswers(t *testing.T) {
	_, k := newClocks()
	for _, c := range []struct{ line, want string }{
		{"keep-awake\n", "ok 0"},
		{"keep-awake 90", "ok 90"},
		{"  keep-awake  10m \r\n", "ok 600"},
		{"keep-awake 90s", "ok 600"},
		{"keep-awake 24h", "ok 86400"},
		{"keep-awake", "ok 86400"},
		{"keep-awake 0", "ok 0"},
		{"keep-awake 1ms", "ok 1"},
	} {
		if got := k.answer(c.line); got != c.want {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
	for _, line := range []string{
		"", "\n", "sleep 10m", "keep-awake 10m 20m", "keep-awake -5s", "keep-awake 25h", "keep-awake 86401",
		"keep-awake soon", "keep-awake 99999999999999999999", "keep-awake NaNs", "keep-awake 1e9h", "keep-awake \x1b[31m",
	} {
		got := k.answer(line)
		if !strings.HasPrefix(got, "error ") || !strings.Contains(got, "must be") || strings.Contains(got, "\x1b") {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// serve serves at a socket until the end of the test.
func serve(t *testing.T, k *Keeper) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "awake") // a short path
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "run", "agent.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // left by another agent
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = k.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = os.RemoveAll(dir)
	})
	return path
}

func TestProgramsAsk(t *testing.T) {
	_, k := newClocks()
	path := serve(t, k)
	for _, c := range []struct {
		duration string
		want     time.Duration
	}{{"", 0}, {"10m", 10 * time.Minute}, {"", 10 * time.Minute}, {"0", 0}} {
		if left, err := Ask(t.Context(), path, c.duration); err != nil || left != c.want {
			t.Errorf("%q: %v, %v, want %v", c.duration, left, err, c.want)
		}
	}
	if _, err := Ask(t.Context(), path, "25h"); err == nil || !strings.Contains(err.Error(), "from 0 to 24h0m0s") {
		t.Errorf("too long: %v", err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o666, filepath.Dir(path): 0o755} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if _, err := Ask(t.Context(), path+"2", ""); err == nil || !strings.Contains(err.Error(), "cannot reach the agent") {
		t.Errorf("without an agent: %v", err)
	}
}

// A program that sends nothing, or too much, holds up no other.
func TestOthersAreServedBesideABadProgram(t *testing.T) {
	_, k := newClocks()
	path := serve(t, k)
	silent, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	if _, err := Ask(t.Context(), path, strings.Repeat("9", 10*maxLine)); err == nil || !strings.Contains(err.Error(), "127 bytes at most") {
		t.Errorf("a long line: %v", err)
	}
	if left, err := Ask(t.Context(), path, "1m"); err != nil || left != time.Minute {
		t.Errorf("got %v, %v", left, err)
	}
}

// flaky is a listener that fails some times, as one does without file descriptors.
type flaky struct {
	failures int
	conns    chan net.Conn
	close    func() error
}

func (l *flaky) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, syscall.EMFILE
	}
	if conn, ok := <-l.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (l *flaky) Close() error   { return l.close() }
func (l *flaky) Addr() net.Addr { return &net.UnixAddr{} }

func TestProgramsAreServedAfterFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, k := newClocks()
		began := time.Now()
		conns := make(chan net.Conn)
		l := &flaky{maxConnections + 1, conns, sync.OnceValue(func() error { close(conns); return nil })}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Serve(ctx, l) }()
		ours, theirs := net.Pipe()
		select {
		case conns <- theirs:
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		}
		if got := time.Since(began); got != (maxConnections+1)*acceptPause {
			t.Errorf("served after %v", got)
		}
		_, _ = io.WriteString(ours, "keep-awake 90\n")
		if reply, err := io.ReadAll(ours); err != nil || string(reply) != "ok 90\n" {
			t.Errorf("%q, %v", reply, err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// A listener that fails for ever is given up when the agent ends.
func TestFailuresEndWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, k := newClocks()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := k.Serve(ctx, &flaky{1 << 30, nil, func() error { return nil }}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add("keep-awake 10m\n")
	f.Add("keep-awake 0x1p-2h")
	f.Add(strings.Repeat("x", 2*maxLine))
	f.Fuzz(func(t *testing.T, sent string) {
		_, k := newClocks()
		var written strings.Builder
		k.serve(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(sent), &written})
		reply := written.String()
		if !strings.HasPrefix(reply, "ok ") && !strings.HasPrefix(reply, "error ") || strings.Count(reply, "\n") != 1 || len(reply) > 2*maxLine {
			t.Errorf("the reply is %q", reply)
		}
		if left := k.Left(); left < 0 || left > wire.MaxKeepAwake {
			t.Errorf("%v are left", left)
		}
	})
}
