package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"github.com/hatchvm/hatch/api"
)

// asHatch is set where this test program is to be hatch itself.
const asHatch = "HATCH_TEST_AS_HATCH"

func TestMain(m *testing.M) {
	if os.Getenv(asHatch) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestExec(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	for _, code := range []string{"0", "3", "126", "127", "255"} {
		t.Run(code, func(t *testing.T) {
			got := s.hatch("exec", "web", "--", "exit", code)
			if code != "0" && got == 0 || s.stdout.String() != "out\n" || s.stderr.String() != "err\n" {
				t.Errorf("exit %s: %d, %q, %q", code, got, &s.stdout, &s.stderr)
			}
			if asked := <-f.execs.asked; asked.Command.Argv[1] != code || asked.StdinOpen || asked.TTY != nil {
				t.Errorf("asked for %+v", asked)
			}
		})
	}
	s.stdin = strings.NewReader(strings.Repeat("in\n", 100_000))
	if code := s.hatch("exec", "-i", "web", "cat"); code != 0 || s.stdout.Len() != 300_000 {
		t.Errorf("exit code %d, %d bytes: %s", code, s.stdout.Len(), &s.stderr)
	}
	if code := s.hatch("exec", "--timeout", "1500ms", "web", "exit", "9"); code != 9 || !strings.Contains(s.stderr.String(), "--timeout passed") {
		t.Errorf("exit code %d, %q", code, &s.stderr)
	}
}

func TestExecSendsWhatWasGiven(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.env["HERE"], s.env["TERM"] = "mine", "xterm-256color"
	file := filepath.Join(s.env["HOME"], "env")
	writeFile(t, file, "# comment\n\nA=file\nB= b=c \r\nHERE\nGONE\n")
	code := s.hatch("exec", "-t", "-u", "www:www", "-w", "/srv", "--env-file", file, "-e", "A=flag", "-e", "C=", "--timeout", "1m", "web", "exit", "0", "-i", "--user", "x")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	pretty, _ := json.MarshalIndent(<-f.execs.asked, "", "  ")
	golden(t, "exec-request.json", string(pretty)+"\n")
}

func TestExecDetached(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("exec", "-d", "-i", "web", "backup", "--all"); code != 0 || s.stdout.String() != "exec_run000000001\n" {
		t.Errorf("exit code %d, %q, %s", code, &s.stdout, &s.stderr)
	}
	if body := f.lastBody(t); body != `{"command":["backup","--all"],"stdin_open":true,"background":true}` {
		t.Errorf("sent %s", body)
	}
	if s.hatch("exec", "-d", "-o", "json", "web", "backup"); !strings.Contains(s.stdout.String(), `"state": "running"`) {
		t.Errorf("printed %s", &s.stdout)
	}
}

func TestExecFaults(t *testing.T) {
	f := newFake(t)
	f.answer["GET /vms/vm_db0000000002/exec"] = api.Problem{Status: 409, Error: "cannot work inside VM vm_db0000000002: it is stopped", Code: "vm_not_running", Hint: "start it first"}
	s := newSession(t, f)
	for args, want := range map[string]string{
		"exec":                        "takes at least one VM and command",
		"exec web":                    "takes a VM and a command",
		"exec web --":                 "takes a VM and a command",
		"exec nothing true":           `cannot run a command in nothing: there is no VM "nothing"`,
		"exec db true":                "it is stopped\nhint: start it first",
		"exec -it web sh":             "-t with -i needs a terminal",
		"exec --timeout 1us web a":    "--timeout takes a millisecond or more",
		"exec --timeout -1s web a":    "--timeout takes a millisecond or more",
		"exec -e =x web a":            "does not begin with the name of a variable",
		"exec --env-file /none web a": "cannot read the environment",
		"execs":                       "takes one VM",
		"execs attach web":            "takes a VM and an exec",
		"execs attach web none":       `there is no exec "none"`,
		"execs kill web exec_":        "could be any of these execs",
	} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code == 0 || !strings.Contains(s.stderr.String(), want) {
				t.Errorf("%s: exit code %d, %s", args, code, &s.stderr)
			}
		})
	}
	if len(f.execs.asked) != 0 {
		t.Error("something was run")
	}
}

// TestExecWaitsForBoot runs a command in a VM that has only just been started.
func TestExecWaitsForBoot(t *testing.T) {
	const wait = "GET /vms/vm_web000000001/wait?for=agent&timeout=1m0s"
	f := newFake(t)
	s := newSession(t, f)
	started := api.Time{Time: testNow.Add(-time.Second)}
	f.vms[0].StartedAt = &started
	for _, status := range []string{api.StatusTrue, api.StatusFalse} {
		f.vms[0].Conditions[0].Status = status
		if s.hatch("exec", "web", "exit", "0"); f.called(wait) {
			t.Errorf("it waits for an agent that is ready: %s", status)
		}
	}
	f.vms[0].Conditions[0].Status = api.StatusUnknown
	if code := s.hatch("exec", "web", "exit", "0"); code != 0 || !f.called(wait) {
		t.Errorf("exit code %d, calls %q", code, f.calls)
	}
}

// TestExecPassesSignalsOn interrupts a command that does not end of it: the
// third time leaves it running.
func TestExecPassesSignalsOn(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.signals = make(chan os.Signal, 3)
	s.signals <- syscall.SIGTERM
	s.signals <- os.Interrupt
	if code := s.hatch("exec", "web", "trap", "SIGINT"); code != 130 || s.stdout.String() != "ready\nSIGTERM\nSIGINT\n" {
		t.Errorf("exit code %d, %q", code, &s.stdout)
	}
	for range 3 {
		s.signals <- os.Interrupt
	}
	if code := s.hatch("exec", "web", "trap", "SIGKILL"); code != exitOwn || !strings.Contains(s.stderr.String(), "left running") {
		t.Errorf("exit code %d, %s", code, &s.stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.ctx = ctx
	cancel()
	if code := s.hatch("exec", "web", "trap", "SIGINT"); code != exitInterrupted {
		t.Errorf("interrupted before it began: exit code %d", code)
	}
	close(f.execs.signals)
}

type brokenOutput struct{ err error }

func (b brokenOutput) Write([]byte) (int, error) { return 0, b.err }

// A command whose output has no reader ends, as in a local pipe; one that was only
// attached to goes on.
func TestABrokenPipeEndsTheCommand(t *testing.T) {
	for _, tc := range []struct {
		args    string
		err     error
		code    int
		signals int
		says    string
	}{
		{"exec web trap SIGPIPE", syscall.EPIPE, 130, 1, ""},
		{"exec web trap SIGPIPE", syscall.ENOSPC, exitOwn, 1, "its output cannot be written: no space left on device"},
		{"execs attach web run0", syscall.EPIPE, exitPipe, 0, ""},
	} {
		t.Run(tc.args+tc.err.Error(), func(t *testing.T) {
			f := newFake(t)
			s := newSession(t, f)
			s.out, s.stdin = brokenOutput{tc.err}, strings.NewReader("typed")
			if code := s.hatch(strings.Fields(tc.args)...); code != tc.code || !strings.Contains(s.stderr.String(), tc.says) || (tc.says == "") != (s.stderr.Len() == 0) {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
			sent := 0
			for _, call := range f.calls {
				if strings.HasSuffix(call, "/signal") {
					sent++
				}
			}
			if sent != tc.signals {
				t.Errorf("%d signals: %q", sent, f.calls)
			}
		})
	}
}

func TestExecs(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	for name, args := range map[string]string{
		"execs.txt":         "execs web",
		"execs-wide.txt":    "execs -a web -o wide",
		"execs.json":        "execs -a web -o json",
		"exec-inspect.json": "execs inspect web run0",
	} {
		t.Run(name, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("%s: exit code %d: %s", args, code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
	s.stdin = strings.NewReader("typed")
	for _, tc := range []struct{ args, call, out string }{
		{"execs -q -a web", "GET /vms/vm_web000000001/execs", "exec_run000000001\nexec_end000000002\n"},
		{"execs ls -q web", "GET /vms/vm_web000000001/execs", "exec_run000000001\n"},
		{"execs logs -f web run0", "GET /vms/vm_web000000001/execs/exec_run000000001/logs?follow=true", "said\n"},
		{"execs kill -s INT web run0", "POST /vms/vm_web000000001/execs/exec_run000000001/signal", "run0\n"},
		{"execs rm web exec_end000000002", "DELETE /vms/vm_web000000001/execs/exec_end000000002", "exec_end000000002\n"},
		{"execs attach web run0", "GET /vms/vm_web000000001/execs/exec_run000000001/attach?from=0", "typed"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(tc.args)...); code != 0 || s.stdout.String() != tc.out || !f.called(tc.call) {
				t.Errorf("%s: exit code %d, %q, %s; calls %q", tc.args, code, &s.stdout, &s.stderr, f.calls)
			}
		})
	}
	if s.hatch("__complete", "execs", "logs", "web", ""); !strings.Contains(s.stdout.String(), "exec_run000000001\tsh -c 'while") {
		t.Errorf("offered are %s", &s.stdout)
	}
	if s.hatch("__complete", "exec", "web", ""); strings.Contains(s.stdout.String(), "db") {
		t.Errorf("a VM is offered as a command: %s", &s.stdout)
	}
}

// screen is a terminal with hatch on it.
type screen struct {
	t        *testing.T
	keyboard *os.File
	line     *os.File // the other end
	shown    string
}

// runOnTerminal starts this program as hatch on a terminal of its own.
func runOnTerminal(t *testing.T, f *fakeServer, args ...string) (*screen, *exec.Cmd) {
	t.Helper()
	keyboard, line, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close(); _ = line.Close() })
	s := &screen{t: t, keyboard: keyboard, line: line}
	s.resize(24, 80)
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = []string{asHatch + "=1", "HOME=" + t.TempDir(), "HATCH_URL=" + f.URL, "HATCH_API_KEY=" + testKey, "TERM=xterm"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = line, line, line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return s, cmd
}

func (s *screen) resize(rows, cols uint16) {
	if err := pty.Setsize(s.keyboard, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		s.t.Fatal(err)
	}
}

// await reads until text is shown.
func (s *screen) await(text string) {
	s.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(s.shown, text) {
		n, err := s.keyboard.Read(buf)
		if err != nil {
			s.t.Fatalf("after %q: %v", s.shown, err)
		}
		s.shown += string(buf[:n])
	}
}

func (s *screen) state() *term.State {
	state, err := term.GetState(int(s.line.Fd()))
	if err != nil {
		s.t.Fatal(err)
	}
	return state
}

func exitCodeOf(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// TestExecOnATerminal goes through a session on a real terminal: its size, a
// new size, what is typed, and ctrl-C, which is the guest's.
func TestExecOnATerminal(t *testing.T) {
	f := newFake(t)
	s, cmd := runOnTerminal(t, f, "exec", "-it", "web", "size")
	before := s.state()
	s.await("24 80\r\n")
	if asked := <-f.execs.asked; asked.Env["TERM"] != "xterm" || !asked.StdinOpen {
		t.Errorf("asked for %+v", asked)
	}
	s.resize(30, 100)
	s.await("30 100\r\n")
	if reflect.DeepEqual(s.state(), before) {
		t.Error("the terminal is not in raw mode")
	}
	_, _ = io.WriteString(s.keyboard, "x\r")
	s.await("x\r")
	_, _ = io.WriteString(s.keyboard, "\x03")
	s.await("^C")
	if code := exitCodeOf(t, cmd); code != 130 {
		t.Errorf("exit code %d: %q", code, s.shown)
	}
	if !reflect.DeepEqual(s.state(), before) {
		t.Error("the terminal is not as it was")
	}
	if len(f.execs.signals) != 0 {
		t.Error("ctrl-C was passed on as a signal, too")
	}
}

// TestExecInterrupted types ctrl-C where there is no terminal in the guest.
func TestExecInterrupted(t *testing.T) {
	f := newFake(t)
	s, cmd := runOnTerminal(t, f, "exec", "web", "trap", "SIGINT")
	s.await("ready")
	_, _ = io.WriteString(s.keyboard, "\x03")
	s.await("SIGINT")
	if code := exitCodeOf(t, cmd); code != 130 {
		t.Errorf("exit code %d: %q", code, s.shown)
	}
}
