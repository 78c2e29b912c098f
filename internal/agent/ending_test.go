package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// pid1 makes a directory proc with an init, which has the given masks of signals.
func pid1(t *testing.T, exe, masks string) (proc string) {
	t.Helper()
	proc = t.TempDir()
	write(t, filepath.Join(proc, "1/comm"), filepath.Base(exe)+"\n")
	write(t, filepath.Join(proc, "1/status"), masks)
	for path, target := range map[string]string{"1/exe": exe, "self/exe": "/init"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(proc, path)); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

func TestTheEndOfAGuestIsSeen(t *testing.T) {
	const handling, reset = "SigBlk:\t0000000000000000\nSigCgt:\t0000000000080000\n", "SigBlk:\t0000000000000000\nSigCgt:\t0000000000000000\n"
	t.Run("systemd", func(t *testing.T) {
		e := newEnding()
		e.proc = pid1(t, "/usr/lib/systemd/systemd", "")
		for i, c := range []struct {
			state string
			err   error
			want  bool
		}{
			{"starting", nil, false},
			{"", errors.New("busy"), false},
			{"running", nil, false},
			{"stopping", nil, true},
			{"", errors.New("gone"), true},
			{"running", nil, false}, // the shutdown was cancelled
		} {
			e.systemd = func(context.Context) (string, error) { return c.state, c.err }
			if got := e.now(t.Context()); got != c.want {
				t.Errorf("%d: %q, %v: it goes down: %t", i, c.state, c.err, got)
			}
		}
	})
	t.Run("systemd at its end", func(t *testing.T) {
		e := newEnding()
		if e.proc = pid1(t, "/usr/lib/systemd/systemd-shutdown", ""); !e.now(t.Context()) {
			t.Error("it does not go down")
		}
	})
	t.Run("busybox", func(t *testing.T) {
		e := newEnding()
		e.proc = pid1(t, "/bin/busybox", reset)
		for i, c := range []struct {
			masks string
			want  bool
		}{{reset, false}, {handling, false}, {reset, true}, {handling, false}} {
			write(t, filepath.Join(e.proc, "1/status"), c.masks)
			if got := e.now(t.Context()); got != c.want {
				t.Errorf("%d: it goes down: %t", i, got)
			}
		}
		if e.proc = t.TempDir(); !e.now(t.Context()) {
			t.Error("with all unmounted it does not go down")
		}
	})
	t.Run("any other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newEnding()
			e.proc = pid1(t, "/sbin/openrc-init", handling)
			if e.now(t.Context()) {
				t.Error("it goes down at once")
			}
			e.signaled = time.Now()
			if !e.now(t.Context()) {
				t.Error("a signal to all processes says nothing")
			}
			<-time.After(lastSignal)
			if e.now(t.Context()) {
				t.Error("it goes down for ever")
			}
		})
	})
}

func TestAGuestThatIsAskedToShutDownGoesDown(t *testing.T) {
	a := New(slog.New(slog.DiscardHandler), "test")
	a.ending.proc = pid1(t, "/sbin/openrc-init", "")
	if a.Status().GoingDown {
		t.Error("it goes down at once")
	}
	if _, err := a.Shutdown(t.Context(), wire.ShutdownArgs{}); err != nil || !a.Status().GoingDown {
		t.Errorf("asked to shut down, it is ready: %v", err)
	}
}
