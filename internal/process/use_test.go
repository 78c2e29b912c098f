package process_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

func requireUse(t *testing.T, host *hostVM, opened, inUse int) {
	t.Helper()
	if gotOpened, gotInUse := host.Opened(), host.InUse(); gotOpened != opened || gotInUse != inUse {
		t.Errorf("the guest was opened %d times and is in use %d times, want %d and %d", gotOpened, gotInUse, opened, inUse)
	}
}

// TestEachCallOpensTheGuestOnce looks at the guest after each call that holds no
// stream.
func TestEachCallOpensTheGuestOnce(t *testing.T) {
	s, host, _ := newCounted(t)
	scope := access.Owner(me)
	p, err := s.Start(t.Context(), scope, myVM, process.Spec{Shell: "cat", Stdin: true, TTY: &process.Size{Rows: 24, Cols: 80}}, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	requireUse(t, host, 1, 0)
	failed := errors.New("no spec")
	for name, call := range map[string]struct {
		do   func(ctx context.Context) error
		code string // "" for no error
	}{
		"list":   {func(ctx context.Context) error { _, err := s.List(ctx, scope, myVM); return err }, ""},
		"get":    {func(ctx context.Context) error { _, err := s.Get(ctx, scope, myVM, p.ID); return err }, ""},
		"no id":  {func(ctx context.Context) error { _, err := s.Get(ctx, scope, myVM, "../x"); return err }, "process_not_found"},
		"signal": {func(ctx context.Context) error { return s.Signal(ctx, scope, myVM, p.ID, "USR2") }, ""},
		"resize": {func(ctx context.Context) error {
			return s.Resize(ctx, scope, myVM, p.ID, process.Size{Rows: 1, Cols: 1})
		}, ""},
		"write": {func(ctx context.Context) error { return s.WriteStdin(ctx, scope, myVM, p.ID, []byte("x"), false) }, ""},
		"log":   {func(ctx context.Context) error { return s.Log(ctx, scope, myVM, p.ID, false, func() {}, io.Discard) }, ""},
		"no log": {func(ctx context.Context) error {
			return s.Log(ctx, scope, myVM, "exec_none", true, func() {}, io.Discard)
		}, "process_not_found"},
		"run": {func(ctx context.Context) error {
			_, err := s.Run(ctx, scope, myVM, process.Run{Spec: shell("true")})
			return err
		}, ""},
		"no user": {func(ctx context.Context) error {
			_, err := open(ctx, s, process.Spec{Shell: "true", User: "else"})
			return err
		}, "invalid_user"},
		"bad run": {func(ctx context.Context) error {
			_, err := s.Run(ctx, scope, myVM, process.Run{Spec: process.Spec{Shell: "true", User: "else"}})
			return err
		}, "invalid_user"},
		"bad start": {func(ctx context.Context) error {
			_, err := s.Start(ctx, scope, myVM, process.Spec{Shell: "true", User: "else"}, nil)
			return err
		}, "invalid_user"},
		"bad spec":  {func(ctx context.Context) error { _, err := open(ctx, s, process.Spec{}); return err }, "invalid_command"},
		"no attach": {func(ctx context.Context) error { _, err := s.Attach(ctx, scope, myVM, "exec_none", 0); return err }, "process_not_found"},
		"no spec": {func(ctx context.Context) error {
			_, err := s.Open(ctx, scope, myVM, func() (process.Spec, error) { return process.Spec{}, failed })
			if !errors.Is(err, failed) {
				t.Errorf("a spec that fails: %v", err)
			}
			return nil
		}, ""},
		"a panic": {func(ctx context.Context) error {
			defer func() { _ = recover() }()
			_, err := s.Open(ctx, scope, myVM, func() (process.Spec, error) { panic("the transport") })
			return err
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := host.Opened()
			err := call.do(t.Context())
			if call.code == "" && err != nil || call.code != "" && !errs.HasCode(err, call.code) {
				t.Errorf("got %v", err)
			}
			requireUse(t, host, before+1, 0)
		})
	}
}

func TestStreamKeepsTheGuestInUse(t *testing.T) {
	s, host, _ := newCounted(t)
	stream, err := open(t.Context(), s, process.Spec{Shell: "echo x; cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	requireUse(t, host, 1, 1)
	again, err := s.Attach(t.Context(), access.Owner(me), myVM, stream.Process().ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	requireUse(t, host, 2, 2)
	if err := stream.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if _, _, exit := read(t, stream); exit.Code != 0 {
		t.Errorf("it ended with %+v", exit)
	}
	requireUse(t, host, 2, 2) // until it is closed
	for range 2 {
		_ = stream.Close()
	}
	requireUse(t, host, 2, 1)
	_ = again.Close()
	requireUse(t, host, 2, 0)
}

func TestStreamOfALostGuestIsReleased(t *testing.T) {
	s, host, guest := newCounted(t)
	stream, err := open(t.Context(), s, shell("sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	guest.SetLost(true)
	if _, err := stream.Next(); err == nil {
		t.Error("a lost guest has output")
	}
	_ = stream.Close()
	_, err = open(t.Context(), s, shell("true"))
	wantCode(t, err, errs.Unavailable, "agent_unavailable")
	requireUse(t, host, 2, 0)
	guest.SetLost(false)
}

// TestCallerThatLeavesReleasesTheGuest leaves during a run and a followed log.
func TestCallerThatLeavesReleasesTheGuest(t *testing.T) {
	s, host, guest := newCounted(t)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := s.Run(ctx, access.Owner(me), myVM, process.Run{Spec: shell("sleep 60")})
		ended <- err
	}()
	guest.AwaitRunning(1)
	requireUse(t, host, 1, 1)
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the run ended with %v", err)
	}
	requireUse(t, host, 1, 0)

	p, err := s.Start(t.Context(), access.Owner(me), myVM, shell("sleep 60"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave = context.WithCancel(t.Context())
	var log bytes.Buffer
	go func() { ended <- s.Log(ctx, access.Owner(me), myVM, p.ID, true, leave, &log) }()
	if err := <-ended; err == nil {
		t.Error("the log ended without an error")
	}
	requireUse(t, host, 3, 0)
}
