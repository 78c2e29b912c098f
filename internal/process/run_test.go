package process_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

func TestRun(t *testing.T) {
	s, _ := newService(t)
	for _, c := range []struct {
		run            process.Run
		stdout, stderr string
		exit           process.Exit
	}{
		{process.Run{Spec: shell("echo a b; echo c >&2; exit 3")}, "a b\n", "c\n", process.Exit{Code: 3}},
		{process.Run{Spec: process.Spec{Argv: []string{"echo", "a  b"}}}, "a  b\n", "", process.Exit{}},
		{process.Run{Spec: process.Spec{Argv: []string{"nothing"}}}, "", "nothing: not found\n", process.Exit{Code: 127}},
		{process.Run{Spec: process.Spec{Argv: []string{"/tmp"}}}, "", "/tmp: Permission denied\n", process.Exit{Code: 126}},
		{process.Run{Spec: shell("cat"), Input: []byte("in\x00")}, "in\x00", "", process.Exit{}},
		{process.Run{Spec: shell("cat")}, "", "", process.Exit{}},
		{process.Run{Spec: process.Spec{Shell: "cat", Stdin: true}}, "", "", process.Exit{}}, // no caller could write to it
		{process.Run{Spec: shell("true"), Input: make([]byte, 1<<20)}, "", "", process.Exit{}},
		{process.Run{Spec: process.Spec{Shell: "sleep 60", Timeout: 10 * time.Millisecond}}, "", "", process.Exit{Code: 137, Signal: "SIGKILL", TimedOut: true}},
		{process.Run{Spec: process.Spec{Shell: "env; pwd; whoami", Env: map[string]string{"B": "2=", "A": ""}, Dir: "/srv", User: "daemon"}}, "A=\nB=2=\n/srv\ndaemon\n", "", process.Exit{}},
		{process.Run{Spec: process.Spec{Shell: "stty size", TTY: &process.Size{Rows: 50, Cols: 132}}}, "50 132\r\n", "", process.Exit{}},
	} {
		got, err := s.Run(t.Context(), access.Owner(me), myVM, c.run)
		if err != nil {
			t.Errorf("%+v: %v", c.run.Spec, err)
			continue
		}
		got.Exit.At = time.Time{}
		if string(got.Stdout.Data) != c.stdout || string(got.Stderr.Data) != c.stderr || got.Exit != c.exit || got.ID == "" {
			t.Errorf("%+v: stdout %q, stderr %q, %+v", c.run.Spec, got.Stdout.Data, got.Stderr.Data, got.Exit)
		}
		if got.Stdout.Truncated || got.Stderr.Truncated {
			t.Errorf("%+v: truncated", c.run.Spec)
		}
	}
}

// TestRunKeepsTheBeginning has a process with more output than is kept: it must
// not block, and the result must say so.
func TestRunKeepsTheBeginning(t *testing.T) {
	s, guest := newService(t)
	guest.Keep = 4096
	input := bytes.Repeat([]byte("0123456789"), 100_000)
	got, err := s.Run(t.Context(), access.Owner(me), myVM, process.Run{Spec: shell("echo x >&2; cat"), Input: input, MaxOutput: 1005})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Stdout.Data, input[:1005]) || !got.Stdout.Truncated || got.Exit.Code != 0 {
		t.Errorf("kept %d bytes, truncated %v, %+v", len(got.Stdout.Data), got.Stdout.Truncated, got.Exit)
	}
	if string(got.Stderr.Data) != "x\n" || got.Stderr.Truncated {
		t.Errorf("stderr %q, truncated %v", got.Stderr.Data, got.Stderr.Truncated)
	}
	whole, err := s.Run(t.Context(), access.Owner(me), myVM, process.Run{Spec: shell("cat"), Input: input[:1005], MaxOutput: 1005})
	if err != nil || len(whole.Stdout.Data) != 1005 || whole.Stdout.Truncated {
		t.Errorf("output of exactly the limit: %d bytes, truncated %v, %v", len(whole.Stdout.Data), whole.Stdout.Truncated, err)
	}
}

// TestRunIsEndedWithItsCaller leaves while the process runs. A process in the
// background is the control.
func TestRunIsEndedWithItsCaller(t *testing.T) {
	s, guest := newService(t)
	if _, err := s.Start(t.Context(), access.Owner(me), myVM, shell("sleep 60"), nil); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := s.Run(ctx, access.Owner(me), myVM, process.Run{Spec: shell("sleep 61"), Input: make([]byte, 1<<20)})
		ended <- err
	}()
	guest.AwaitRunning(2)
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	left, err := s.List(t.Context(), access.Owner(me), myVM)
	if err != nil || len(left) != 1 || left[0].Spec.Shell != "sleep 60" {
		t.Errorf("left are %+v, %v", left, err)
	}
}

func TestRunInALostGuest(t *testing.T) {
	s, guest := newService(t)
	ended := make(chan error)
	go func() {
		_, err := s.Run(t.Context(), access.Owner(me), myVM, process.Run{Spec: shell("sleep 60")})
		ended <- err
	}()
	guest.AwaitRunning(1)
	guest.SetLost(true)
	wantCode(t, <-ended, errs.Unavailable, "agent_unavailable")
}

func TestBadCommands(t *testing.T) {
	s, guest := newService(t)
	long := strings.Repeat("x", process.MaxSpec)
	many := map[string]string{}
	for i := range process.MaxArgs + 1 {
		many[strings.Repeat("x", i+1)] = ""
	}
	for name, c := range map[string]struct {
		spec process.Spec
		code string
	}{
		"nothing":              {process.Spec{}, "invalid_command"},
		"an empty program":     {process.Spec{Argv: []string{"", "a"}}, "invalid_command"},
		"both":                 {process.Spec{Argv: []string{"a"}, Shell: "a"}, "invalid_command"},
		"a NUL in the line":    {shell("echo \x00"), "invalid_command"},
		"a NUL in an argument": {process.Spec{Argv: []string{"echo", "\x00"}}, "invalid_command"},
		"too many words":       {process.Spec{Argv: make([]string, process.MaxArgs+1)}, "invalid_command"},
		"too long":             {shell(long), "invalid_command"},
		"too long with env":    {process.Spec{Shell: "true", Env: map[string]string{"A": long}}, "invalid_command"},
		"a nameless variable":  {process.Spec{Shell: "true", Env: map[string]string{"": "a"}}, "invalid_env"},
		"an odd variable":      {process.Spec{Shell: "true", Env: map[string]string{"A=B": "a"}}, "invalid_env"},
		"a NUL in a variable":  {process.Spec{Shell: "true", Env: map[string]string{"A": "sec\x00ret"}}, "invalid_env"},
		"too many variables":   {process.Spec{Shell: "true", Env: many}, "invalid_env"},
		"a relative directory": {process.Spec{Shell: "true", Dir: "tmp"}, "invalid_cwd"},
		"a long directory":     {process.Spec{Shell: "true", Dir: "/" + strings.Repeat("x", process.MaxDir)}, "invalid_cwd"},
		"an odd user":          {process.Spec{Shell: "true", User: "a b"}, "invalid_user"},
		"a user's empty group": {process.Spec{Shell: "true", User: "root:"}, "invalid_user"},
		"a negative timeout":   {process.Spec{Shell: "true", Timeout: -1}, "invalid_timeout_ms"},
		"a long timeout":       {process.Spec{Shell: "true", Timeout: process.MaxTimeout + 1}, "invalid_timeout_ms"},
		"a long tag":           {process.Spec{Shell: "true", Tag: strings.Repeat("x", process.MaxTag+1)}, "invalid_tag"},
		"a tag with a NUL":     {process.Spec{Shell: "true", Tag: "\x00"}, "invalid_tag"},
		"a terminal of no row": {process.Spec{Shell: "true", TTY: &process.Size{Cols: 80}}, "invalid_tty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Run(t.Context(), access.Owner(me), myVM, process.Run{Spec: c.spec})
			wantCode(t, err, errs.Invalid, c.code)
			if strings.Contains(err.Error(), "sec") {
				t.Errorf("the error repeats a value: %v", err)
			}
			_, err = open(t.Context(), s, c.spec)
			wantCode(t, err, errs.Invalid, c.code)
			_, err = s.Start(t.Context(), access.Owner(me), myVM, c.spec, nil)
			wantCode(t, err, errs.Invalid, c.code)
		})
	}
	for _, limit := range []int{-1, process.MaxOutput + 1} {
		_, err := s.Run(t.Context(), access.Owner(me), myVM, process.Run{Spec: shell("true"), MaxOutput: limit})
		wantCode(t, err, errs.Invalid, "invalid_max_output_bytes")
	}
	if all, _ := guest.Processes(t.Context()); len(all) != 0 {
		t.Errorf("%d were started", len(all))
	}
}
