package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

// read reads a stream until its process ends.
func read(t *testing.T, stream process.Stream) (output string, lost int64, exit process.Exit) {
	t.Helper()
	var all strings.Builder
	for {
		chunk, err := stream.Next()
		if err != nil {
			t.Fatalf("after %q: %v", &all, err)
		}
		if chunk.Exit != nil {
			return all.String(), lost, *chunk.Exit
		}
		all.Write(chunk.Data)
		lost += chunk.Lost
	}
}

func TestOpen(t *testing.T) {
	s, _ := newService(t)
	stream, err := open(t.Context(), s, process.Spec{Shell: "cat; exit 4", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("typed")); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if got, _, exit := read(t, stream); got != "typed" || exit.Code != 4 {
		t.Errorf("its output is %q, and it ends with %+v", got, exit)
	}
	if _, err := stream.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	_, err = stream.Write([]byte("late"))
	wantCode(t, err, errs.Conflict, "stdin_closed")
	_ = stream.Close()
}

// TestOpenAfterTheEndOfItsRequest starts nothing for a caller that is refused by then.
func TestOpenAfterTheEndOfItsRequest(t *testing.T) {
	s, _ := newService(t)
	ctx, revoke := context.WithCancel(t.Context())
	_, err := s.Open(ctx, access.Owner(me), myVM, func() (process.Spec, error) {
		revoke()
		return process.Spec{Shell: "true"}, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if all, err := s.List(t.Context(), access.Owner(me), myVM); err != nil || len(all) != 0 {
		t.Errorf("it started %v, %v", all, err)
	}
}

// TestAttachAgain closes a stream, and attaches where it ended.
func TestAttachAgain(t *testing.T) {
	s, _ := newService(t)
	stream, err := open(t.Context(), s, process.Spec{Shell: "echo one; cat; echo two", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Next()
	if err != nil || string(first.Data) != "one\n" {
		t.Fatalf("%q, %v", first.Data, err)
	}
	id := stream.Process().ID
	_ = stream.Close()
	if err := s.WriteStdin(t.Context(), access.Owner(me), myVM, id, []byte("more\n"), true); err != nil {
		t.Fatal(err)
	}
	again, err := s.Attach(t.Context(), access.Owner(me), myVM, id, first.Offset)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, _, _ := read(t, again); got != "more\ntwo\n" {
		t.Errorf("after the first line its output is %q", got)
	}
	p, err := s.Get(t.Context(), access.Owner(me), myVM, id)
	if err != nil || p.State != process.Exited || p.Output != int64(len("one\nmore\ntwo\n")) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestStart(t *testing.T) {
	s, _ := newService(t)
	p, err := s.Start(t.Context(), access.Owner(me), myVM, process.Spec{Shell: "cat", Stdin: true}, []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteStdin(t.Context(), access.Owner(me), myVM, p.ID, []byte("b"), true); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, p.ID, "ab")
	whole := bytes.Repeat([]byte("x"), process.MaxStartInput)
	if p, err = s.Start(t.Context(), access.Owner(me), myVM, shell("cat"), whole); err != nil {
		t.Fatal(err)
	}
	wantLog(t, s, p.ID, string(whole))
	if _, err := s.Start(t.Context(), access.Owner(me), myVM, shell("true"), []byte("unread")); err != nil {
		t.Errorf("a process that reads nothing: %v", err)
	}
	_, err = s.Start(t.Context(), access.Owner(me), myVM, shell("cat"), append(whole, 'x'))
	wantCode(t, err, errs.Invalid, "invalid_stdin")
}

// wantLog follows a process's output to its end.
func wantLog(t *testing.T, s *process.Service, id, want string) {
	t.Helper()
	var log strings.Builder
	if err := s.Log(t.Context(), access.Owner(me), myVM, id, true, func() {}, &log); err != nil || log.String() != want {
		t.Errorf("its output is %.100q, %v", log.String(), err)
	}
}

func TestLog(t *testing.T) {
	s, guest := newService(t)
	guest.Keep = 4
	p, err := s.Start(t.Context(), access.Owner(me), myVM, process.Spec{Shell: "echo ab; echo cd >&2; echo ef; cat", Stdin: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for p.Output < 9 {
		if p, err = s.Get(t.Context(), access.Owner(me), myVM, p.ID); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	if err := s.Log(t.Context(), access.Owner(me), myVM, p.ID, false, func() {}, &log); err != nil {
		t.Fatal(err)
	}
	if want := "[6 bytes of output are not kept any more]\nef\n"; log.String() != want {
		t.Errorf("the log is %q", log.String())
	}
	if err := s.Remove(t.Context(), access.Owner(me), myVM, p.ID); err != nil {
		t.Fatal(err)
	}
	err = s.Log(t.Context(), access.Owner(me), myVM, p.ID, false, func() {}, io.Discard)
	wantCode(t, err, errs.NotFound, "process_not_found")
}

func TestSignalAndResize(t *testing.T) {
	s, _ := newService(t)
	p, err := s.Start(t.Context(), access.Owner(me), myVM, process.Spec{Shell: "stty wait", TTY: &process.Size{Rows: 24, Cols: 80}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.Attach(t.Context(), access.Owner(me), myVM, p.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if chunk, err := stream.Next(); err != nil || string(chunk.Data) != "24 80\r\n" {
		t.Fatalf("%q, %v", chunk.Data, err)
	}
	if err := s.Resize(t.Context(), access.Owner(me), myVM, p.ID, process.Size{Rows: 5, Cols: 6}); err != nil {
		t.Fatal(err)
	}
	if chunk, err := stream.Next(); err != nil || string(chunk.Data) != "5 6\r\n" {
		t.Fatalf("%q, %v", chunk.Data, err)
	}
	wantCode(t, s.Resize(t.Context(), access.Owner(me), myVM, p.ID, process.Size{Rows: 5}), errs.Invalid, "invalid_tty")
	for _, bad := range []string{"", "0", "32", "-9", "SIG", "NOPE", "KILL "} {
		wantCode(t, s.Signal(t.Context(), access.Owner(me), myVM, p.ID, bad), errs.Invalid, "invalid_signal")
	}
	if err := s.Signal(t.Context(), access.Owner(me), myVM, p.ID, "15"); err != nil {
		t.Fatal(err)
	}
	if _, _, exit := read(t, stream); exit.Code != 143 || exit.Signal != "SIGTERM" {
		t.Errorf("it ends with %+v", exit)
	}
	wantCode(t, s.Signal(t.Context(), access.Owner(me), myVM, p.ID, "sigterm"), errs.Conflict, "process_ended")
}

// TestNotFound asks for a VM of another owner, and for ids that do not exist.
func TestNotFound(t *testing.T) {
	s, _ := newService(t)
	p, err := s.Start(t.Context(), access.Owner(me), myVM, shell("sleep 60"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ owner, vmID, id, code string }{
		{"acc_other", myVM, p.ID, "vm_not_found"},
		{me, "vm_other", p.ID, "vm_not_found"},
		{me, myVM, "exec_none", "process_not_found"},
		{me, myVM, "../" + strings.Repeat("x", 1000), "process_not_found"},
	} {
		for name, ask := range map[string]func(context.Context) error{
			"get":    func(ctx context.Context) error { _, err := s.Get(ctx, access.Owner(c.owner), c.vmID, c.id); return err },
			"remove": func(ctx context.Context) error { return s.Remove(ctx, access.Owner(c.owner), c.vmID, c.id) },
			"signal": func(ctx context.Context) error { return s.Signal(ctx, access.Owner(c.owner), c.vmID, c.id, "KILL") },
			"stdin": func(ctx context.Context) error {
				return s.WriteStdin(ctx, access.Owner(c.owner), c.vmID, c.id, nil, true)
			},
			"resize": func(ctx context.Context) error {
				return s.Resize(ctx, access.Owner(c.owner), c.vmID, c.id, process.Size{Rows: 1, Cols: 1})
			},
			"attach": func(ctx context.Context) error {
				_, err := s.Attach(ctx, access.Owner(c.owner), c.vmID, c.id, 0)
				return err
			},
		} {
			err := ask(t.Context())
			if !errs.Is(err, errs.NotFound) || !errs.HasCode(err, c.code) || len(err.Error()) > 200 {
				t.Errorf("%s of %.20q: %v", name, c.id, err)
			}
		}
	}
	if _, err := s.Attach(t.Context(), access.Owner(me), myVM, p.ID, -1); !errs.HasCode(err, "invalid_from") {
		t.Errorf("attached before the beginning: %v", err)
	}
	if now, err := s.Get(t.Context(), access.Owner(me), myVM, p.ID); err != nil || now.State != process.Running {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestWhichCallsWake puts the VM to sleep before each call.
func TestWhichCallsWake(t *testing.T) {
	s, host, _ := newCounted(t)
	p, err := s.Start(t.Context(), access.Owner(me), myVM, process.Spec{Shell: "cat", Stdin: true, TTY: &process.Size{Rows: 24, Cols: 80}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []struct {
		name  string
		wakes bool
		do    func(ctx context.Context) error
	}{
		{"run", true, func(ctx context.Context) error {
			_, err := s.Run(ctx, access.Owner(me), myVM, process.Run{Spec: shell("true")})
			return err
		}},
		{"open", true, func(ctx context.Context) error {
			stream, err := open(ctx, s, shell("true"))
			if err == nil {
				_ = stream.Close()
			}
			return err
		}},
		{"start", true, func(ctx context.Context) error {
			_, err := s.Start(ctx, access.Owner(me), myVM, shell("true"), nil)
			return err
		}},
		{"resize", true, func(ctx context.Context) error {
			return s.Resize(ctx, access.Owner(me), myVM, p.ID, process.Size{Rows: 25, Cols: 80})
		}},
		{"list", false, func(ctx context.Context) error { _, err := s.List(ctx, access.Owner(me), myVM); return err }},
		{"get", false, func(ctx context.Context) error { _, err := s.Get(ctx, access.Owner(me), myVM, p.ID); return err }},
		{"log", false, func(ctx context.Context) error {
			return s.Log(ctx, access.Owner(me), myVM, p.ID, false, func() {}, io.Discard)
		}},
		{"attach", false, func(ctx context.Context) error { _, err := s.Attach(ctx, access.Owner(me), myVM, p.ID, 0); return err }},
		{"a spec that cannot be run", false, func(ctx context.Context) error {
			if _, err := s.Start(ctx, access.Owner(me), myVM, process.Spec{}, nil); !errs.Is(err, errs.Invalid) {
				return fmt.Errorf("it is not refused: %w", err)
			}
			return errs.New(errs.Conflict, "vm_not_running", "refused")
		}},
		{"write", true, func(ctx context.Context) error {
			return s.WriteStdin(ctx, access.Owner(me), myVM, p.ID, []byte("x\n"), false)
		}},
		{"signal", true, func(ctx context.Context) error { return s.Signal(ctx, access.Owner(me), myVM, p.ID, "TERM") }},
		{"remove", true, func(ctx context.Context) error { return s.Remove(ctx, access.Owner(me), myVM, p.ID) }},
	} {
		host.Asleep.Store(true)
		err := call.do(t.Context())
		if call.wakes && err != nil || !call.wakes && !errs.HasCode(err, "vm_not_running") {
			t.Errorf("%s: %v", call.name, err)
		}
		if woken := !host.Asleep.Load(); woken != call.wakes {
			t.Errorf("%s: woken %v, want %v", call.name, woken, call.wakes)
		}
	}
}
