package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTable(t *testing.T) *Table {
	t.Helper()
	table := New(slog.New(slog.DiscardHandler))
	table.recentAge = 0
	t.Cleanup(func() { _ = table.Close() })
	return table
}

var lastID int

// spec is a shell line to be run as the user of the test.
func spec(line string) wire.ProcessSpec {
	lastID++
	return wire.ProcessSpec{ID: fmt.Sprintf("exec_%012d", lastID), Shell: line, User: self()}
}

func self() string { return strconv.Itoa(os.Geteuid()) }

// seen is the output that a reader got.
type seen struct {
	stdout, stderr string
	lost           int64
	exit           *wire.ProcessExit
}

func (t *Table) exec(test *testing.T, s wire.ProcessSpec) (wire.Process, *seen) {
	test.Helper()
	p, r, err := t.ExecProcess(s)
	if err != nil {
		test.Fatal(err)
	}
	defer r.Close()
	return p, readAll(test, r)
}

func readAll(t *testing.T, r wire.ProcessAttachment) *seen {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := &seen{}
	for {
		c, err := r.Next(ctx, func() error { return nil })
		if err != nil {
			t.Fatalf("after %+v: %v", s, err)
		}
		if s.lost += c.Lost; c.Exit != nil {
			s.exit = c.Exit
			return s
		}
		if c.Stderr {
			s.stderr += string(c.Data)
		} else {
			s.stdout += string(c.Data)
		}
	}
}

// awaitText reads until stdout has the text, and returns what it read.
func awaitText(t *testing.T, r wire.ProcessAttachment, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := ""
	for !strings.Contains(got, text) {
		c, err := r.Next(ctx, func() error { return nil })
		if err != nil || c.Exit != nil {
			t.Fatalf("%q, then %+v, %v; want %q", got, c.Exit, err, text)
		}
		got += string(c.Data)
	}
	return got
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var refused *wire.RemoteError
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("got %v, want a refusal with code %s", err, code)
	}
}

func TestExecGivesOutputAndExitCode(t *testing.T) {
	table := newTable(t)
	p, got := table.exec(t, spec("echo out; echo err >&2; exit 3"))
	if got.stdout != "out\n" || got.stderr != "err\n" || got.exit.Code != 3 || got.exit.Signal != "" || got.exit.TimedOut {
		t.Errorf("got %+v, %+v", got, got.exit)
	}
	if p.PID <= 0 {
		t.Errorf("at first it was %+v", p)
	}
	after, err := table.Process(p.Spec.ID)
	if err != nil || after.Exit == nil || after.Output != 8 || after.Exit.At < after.StartedAt {
		t.Errorf("afterwards it is %+v, %v", after, err)
	}
}

func TestExitCodesAreThoseOfAShell(t *testing.T) {
	table := newTable(t)
	script := t.TempDir() + "/not-executable"
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	garbage := t.TempDir() + "/garbage"
	if err := os.WriteFile(garbage, []byte{0, 1, 2, 3}, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv   []string
		code   int
		signal string
		stderr string
	}{
		{[]string{"true"}, 0, "", ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, "SIGTERM", ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, "SIGKILL", ""},
		{[]string{"no-such-command-here"}, 127, "", "no-such-command-here: command not found\n"},
		{[]string{"/no/such/file"}, 127, "", "/no/such/file: no such file or directory\n"},
		{[]string{script}, 126, "", script + ": permission denied\n"},
		{[]string{garbage}, 126, "", garbage + ": exec format error\n"},
		{[]string{"/"}, 126, "", "/: permission denied\n"},
	} {
		s := spec("")
		s.Argv = c.argv
		p, got := table.exec(t, s)
		if got.exit.Code != c.code || got.exit.Signal != c.signal || got.stderr != c.stderr || got.stdout != "" {
			t.Errorf("%q: %+v, %+v", c.argv, got, got.exit)
		}
		if again, err := table.Process(p.Spec.ID); err != nil || again.Exit.Code != c.code {
			t.Errorf("%q: kept as %+v, %v", c.argv, again, err)
		}
	}
	s := spec("")
	s.Argv, s.TTY = []string{"no-such-command-here"}, &wire.Terminal{Rows: 24, Cols: 80}
	if _, got := table.exec(t, s); got.stdout != "no-such-command-here: command not found\r\n" || got.stderr != "" {
		t.Errorf("on a terminal: %+v", got)
	}
}

func TestEnvironmentOfAProcess(t *testing.T) {
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	table := newTable(t)
	dir := t.TempDir()
	s := spec("pwd; env; umask; cat; ps -o pid=,pgid=,sid= -p $$")
	s.Dir, s.Tag = dir, "the first"
	s.Env = map[string]string{"A": "b c", "HOME": "/elsewhere"}
	p, got := table.exec(t, s)
	for _, want := range []string{dir + "\n", "A=b c\n", "HOME=/elsewhere\n", "PATH=" + defaultPath + "\n", "LOGNAME=", "USER=", "SHELL=/", fmt.Sprintf("%d", p.PID)} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is missing in %q", want, got.stdout)
		}
	}
	for _, not := range []string{"SECRET_OF_THE_AGENT", "TERM="} {
		if strings.Contains(got.stdout, not) {
			t.Errorf("%q is in %q", not, got.stdout)
		}
	}
	if ids := strings.Fields(got.stdout[strings.LastIndex(strings.TrimSpace(got.stdout), "\n"):]); ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("pid, group and session are %v", ids)
	}
	if p.Spec.Env != nil || p.Spec.Tag != "the first" {
		t.Errorf("the description has the environment, or not the tag: %+v", p.Spec)
	}
}

// TestProcessBlocksNoSignals allows for signals that the test process itself has
// inherited as ignored, as from nohup.
func TestProcessBlocksNoSignals(t *testing.T) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	inherited := signalMask(t, string(own), "SigIgn")
	table := newTable(t)
	_, got := table.exec(t, spec("cat /proc/self/status"))
	if blocked := signalMask(t, got.stdout, "SigBlk"); blocked != 0 {
		t.Errorf("a process begins with %x blocked", blocked)
	}
	if ignored := signalMask(t, got.stdout, "SigIgn") &^ inherited; ignored != 0 {
		t.Errorf("a process begins with %x ignored", ignored)
	}
}

func signalMask(t *testing.T, status, name string) uint64 {
	t.Helper()
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return mask
		}
	}
	t.Fatalf("no %s in %q", name, status)
	return 0
}

func TestInvalidSpecsAreRefused(t *testing.T) {
	table := newTable(t)
	for code, change := range map[string]func(*wire.ProcessSpec){
		wire.CodeUser:    func(s *wire.ProcessSpec) { s.User = "no-such-user" },
		wire.CodeDir:     func(s *wire.ProcessSpec) { s.Dir = "/no/such/directory" },
		wire.CodeInvalid: func(s *wire.ProcessSpec) { s.Shell = "" },
	} {
		s := spec("true")
		change(&s)
		_, err := table.StartProcess(s)
		requireCode(t, err, code)
	}
	for _, change := range []func(*wire.ProcessSpec){
		func(s *wire.ProcessSpec) { s.Dir = "tmp" },
		func(s *wire.ProcessSpec) { s.Dir = "/bin/sh" },
	} {
		s := spec("true")
		change(&s)
		_, err := table.StartProcess(s)
		requireCode(t, err, wire.CodeDir)
	}
	for _, change := range []func(*wire.ProcessSpec){
		func(s *wire.ProcessSpec) { s.Env = map[string]string{"A=B": ""} },
		func(s *wire.ProcessSpec) { s.Env = map[string]string{"": ""} },
		func(s *wire.ProcessSpec) { s.Env = map[string]string{"A": "\x00"} },
		func(s *wire.ProcessSpec) { s.Shell, s.Argv = "", []string{"true", "\x00"} },
		func(s *wire.ProcessSpec) { s.Shell, s.Argv = "", []string{""} },
	} {
		s := spec("true")
		change(&s)
		_, err := table.StartProcess(s)
		requireCode(t, err, wire.CodeInvalid)
	}
	if all := table.Processes(); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	const none = "exec_aaaaaaaaaaaa"
	_, err := table.Process(none)
	requireCode(t, err, wire.CodeNoProcess)
	_, _, err = table.AttachProcess(none, 0)
	requireCode(t, err, wire.CodeNoProcess)
	requireCode(t, table.SignalProcess(none, "TERM"), wire.CodeNoProcess)
	requireCode(t, table.SignalProcess(none, "NOSUCH"), wire.CodeSignal)
	requireCode(t, table.RemoveProcess(none), wire.CodeNoProcess)
	requireCode(t, table.ResizeProcess(none, wire.Terminal{Rows: 1, Cols: 1}), wire.CodeNoProcess)
	requireCode(t, table.EndProcessStdin(t.Context(), none), wire.CodeNoProcess)
}

func TestStdin(t *testing.T) {
	table := newTable(t)
	s := spec("cat; echo done")
	s.Stdin = true
	p, r, err := table.ExecProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := strings.Repeat("0123456789abcdef", 16<<10) // more than pipes hold
	wrote := make(chan error, 1)
	go func() {
		_, err := table.WriteProcess(context.Background(), p.Spec.ID, []byte(big))
		wrote <- errors.Join(err, table.EndProcessStdin(context.Background(), p.Spec.ID))
	}()
	if got := readAll(t, r); got.stdout != big+"done\n" {
		t.Errorf("got %d bytes", len(got.stdout))
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	_, err = table.WriteProcess(t.Context(), p.Spec.ID, []byte("x"))
	requireCode(t, err, wire.CodeStdinClosed)

	empty, got := table.exec(t, spec("cat; echo done"))
	if got.stdout != "done\n" {
		t.Errorf("with an empty stdin: %q", got.stdout)
	}
	_, err = table.WriteProcess(t.Context(), empty.Spec.ID, []byte("x"))
	requireCode(t, err, wire.CodeStdinClosed)
}

func TestWriteThatIsNotReadEndsWithItsContext(t *testing.T) {
	table := newTable(t)
	s := spec("read line; echo got $line; exec sleep 1000")
	s.Stdin = true
	p, r, err := table.ExecProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n, err := table.WriteProcess(ctx, p.Spec.ID, make([]byte, 1<<20))
	if !errors.Is(err, context.DeadlineExceeded) || n == 0 || n == 1<<20 {
		t.Errorf("wrote %d, %v", n, err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := table.WriteProcess(context.Background(), p.Spec.ID, make([]byte, 1<<20))
		waiting <- err
	}()
	if err := table.SignalProcess(p.Spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	requireCode(t, <-waiting, wire.CodeStdinClosed)
}

func TestStdinThatAProcessClosed(t *testing.T) {
	table := newTable(t)
	s := spec("exec <&-; echo closed; exec sleep 1000")
	s.Stdin = true
	p, r, err := table.ExecProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	awaitText(t, r, "closed\n")
	_, err = table.WriteProcess(t.Context(), p.Spec.ID, []byte("x"))
	requireCode(t, err, wire.CodeStdinClosed)
	if err := table.EndProcessStdin(t.Context(), p.Spec.ID); err != nil {
		t.Errorf("a second end of stdin: %v", err)
	}
}

// TestClosedOutput closes the output of processes that would write for ever, and of one
// that is about to write.
func TestClosedOutput(t *testing.T) {
	table := newTable(t)
	terminal := spec("yes")
	terminal.TTY = &wire.Terminal{Rows: 5, Cols: 5}
	for name, c := range map[string]struct {
		spec   wire.ProcessSpec
		stderr bool
		signal string
	}{
		"stdout":   {spec("exec yes"), false, "SIGPIPE"},
		"stderr":   {spec("exec yes >&2"), true, "SIGPIPE"},
		"terminal": {terminal, false, "SIGHUP"},
	} {
		p, r, err := table.ExecProcess(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		awaitText(t, r, "y")
		for range 2 { // a second time it changes nothing
			if err := table.CloseProcessOutput(p.Spec.ID, c.stderr); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		// A write to a terminal that is hung up fails, which may come before the signal.
		failed := func(code int) bool { return name == "terminal" && code == 1 }
		if got := readAll(t, r); got.exit.Signal != c.signal && !failed(got.exit.Code) {
			t.Errorf("%s: ended with %+v", name, got.exit)
		}
	}
	ignoring := spec("trap '' PIPE; read x; echo lost; echo kept >&2")
	ignoring.Stdin = true
	p, r, err := table.ExecProcess(ignoring)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.CloseProcessOutput(p.Spec.ID, false); err != nil {
		t.Error(err)
	}
	if _, err := table.WriteProcess(t.Context(), p.Spec.ID, []byte("\n")); err != nil {
		t.Error(err)
	}
	if got := readAll(t, r); got.stdout != "" || !strings.Contains(got.stderr, "kept\n") || got.exit.Code != 0 {
		t.Errorf("a process that ignores the signal: %+v", got)
	}
	requireCode(t, table.CloseProcessOutput("exec_000000000000", false), wire.CodeNoProcess)
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	table := newTable(t)
	s := spec("sleep 1000 & echo $!; wait")
	s.Timeout = 300 * time.Millisecond
	_, got := table.exec(t, s)
	if !got.exit.TimedOut || got.exit.Code != 137 || got.exit.Signal != "SIGKILL" {
		t.Errorf("got %+v", got.exit)
	}
	requireGone(t, strings.TrimSpace(got.stdout))
	s = spec("exit 4")
	s.Timeout = time.Hour
	if _, got := table.exec(t, s); got.exit.TimedOut || got.exit.Code != 4 {
		t.Errorf("a timeout that was not reached: %+v", got.exit)
	}
}

// requireGone waits for the end of a process that is not our child.
func requireGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); n != 1 {
		t.Errorf("process %s still runs (%v)", pid, err)
	}
}

func TestSignalsReachTheGroup(t *testing.T) {
	table := newTable(t)
	p, r, err := table.ExecProcess(spec("trap 'echo caught; exit 7' USR1; (trap 'echo too >&2; exit' USR1; echo ready; while :; do sleep 0.1; done) & while :; do sleep 0.1; done"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	awaitText(t, r, "ready\n")
	if err := table.SignalProcess(p.Spec.ID, "USR1"); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); got.stdout != "caught\n" || !strings.Contains(got.stderr, "too\n") || got.exit.Code != 7 {
		t.Errorf("got %+v, %+v", got, got.exit)
	}
	requireCode(t, table.SignalProcess(p.Spec.ID, "USR1"), wire.CodeEnded)
}

func TestTerminal(t *testing.T) {
	table := newTable(t)
	s := spec("trap 'echo interrupted; stop=yes' INT; tty; stty size; echo $TERM; read none; stty size; read line; echo \"<$line>\"; while [ -z \"$stop\" ]; do sleep 0.05; done; cat; echo end")
	s.TTY, s.Stdin = &wire.Terminal{Rows: 11, Cols: 22}, true
	p, r, err := table.ExecProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id := p.Spec.ID
	if got := awaitText(t, r, "11 22\r\nxterm-256color\r\n"); !strings.HasPrefix(got, "/dev/pts/") {
		t.Errorf("got %q", got)
	}
	if err := table.ResizeProcess(id, wire.Terminal{Rows: 33, Cols: 44}); err != nil {
		t.Fatal(err)
	}
	for _, typed := range []struct{ keys, shown string }{{"\n", "33 44"}, {"hello\n", "<hello>"}, {"\x03", "interrupted"}} {
		if _, err := table.WriteProcess(t.Context(), id, []byte(typed.keys)); err != nil {
			t.Fatal(err)
		}
		awaitText(t, r, typed.shown)
	}
	if err := table.EndProcessStdin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); !strings.Contains(got.stdout, "end\r\n") || got.stderr != "" || got.exit.Code != 0 {
		t.Errorf("got %+v, %+v", got, got.exit)
	}
	requireCode(t, table.ResizeProcess(id, wire.Terminal{Rows: 1, Cols: 1}), wire.CodeEnded)
	_, err = table.WriteProcess(t.Context(), id, []byte("x"))
	requireCode(t, err, wire.CodeStdinClosed)

	p, err = table.StartProcess(spec("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	requireCode(t, table.ResizeProcess(p.Spec.ID, wire.Terminal{Rows: 1, Cols: 1}), wire.CodeNoTerminal)
}

func TestDescendantsDoNotDelayTheExit(t *testing.T) {
	table := newTable(t)
	table.lastTimeout = 2 * time.Second // a busy machine is slow, too
	p, got := table.exec(t, spec("(sleep 0.05; echo late; while sleep 0.05; do echo more; done) & echo $!; exit 5"))
	if got.exit.Code != 5 || !strings.Contains(got.stdout, "late\n") {
		t.Errorf("got %+v, %+v", got, got.exit)
	}
	child, _, _ := strings.Cut(got.stdout, "\n")
	pid, err := strconv.Atoi(child)
	if err != nil {
		t.Fatal(err)
	}
	// It continues to write, and does not get SIGPIPE.
	timer := time.NewTimer(300 * time.Millisecond)
	<-timer.C
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the descendant is gone: %v", err)
	}
	if after, err := table.Process(p.Spec.ID); err != nil || after.Output != int64(len(got.stdout)) {
		t.Errorf("output grew after the end: %+v, %v", after, err)
	}
	if err := table.RemoveProcess(p.Spec.ID); err != nil {
		t.Fatal(err)
	}
	requireGone(t, child) // by SIGPIPE: the agent has closed its output
}

func TestOutputOfADescendantDoesNotDelayTheExit(t *testing.T) {
	table := newTable(t)
	p, got := table.exec(t, spec("yes & exit 0"))
	if got.exit.Code != 0 || len(got.stdout) > lastBytes+1<<20 {
		t.Errorf("%d bytes, %+v", len(got.stdout), got.exit)
	}
	if err := table.RemoveProcess(p.Spec.ID); err != nil {
		t.Fatal(err)
	}
}

func TestRemovedProcessIsKilled(t *testing.T) {
	table := newTable(t)
	p, r, err := table.ExecProcess(spec("echo up; sleep 1000 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	awaitText(t, r, "up\n")
	if err := table.RemoveProcess(p.Spec.ID); err != nil {
		t.Fatal(err)
	}
	_, err = table.Process(p.Spec.ID)
	requireCode(t, err, wire.CodeNoProcess)
	if got := readAll(t, r); got.exit.Signal != "SIGKILL" {
		t.Errorf("the attached reader got %+v", got.exit)
	}
	r.Close()
	table.mu.Lock()
	defer table.mu.Unlock()
	if table.kept != 0 || table.running != 0 {
		t.Errorf("%d bytes of %d processes are left", table.kept, table.running)
	}
}

// An interactive shell whose client has gone keeps no guest awake.
func TestCommandsAreWhatRunsWithoutAReader(t *testing.T) {
	table := newTable(t)
	interactive := spec("sleep 1000")
	interactive.TTY = &wire.Terminal{Rows: 24, Cols: 80}
	p, r, err := table.ExecProcess(interactive)
	if err != nil {
		t.Fatal(err)
	}
	if n := table.Commands(); n != 0 {
		t.Errorf("a terminal with a reader: %d", n)
	}
	r.Close()
	if n := table.Commands(); n != 0 {
		t.Errorf("a terminal without a reader: %d", n)
	}
	job := spec("sleep 1000")
	job.TTY = interactive.TTY
	if _, err := table.StartProcess(job); err != nil {
		t.Fatal(err)
	}
	_, r, err = table.ExecProcess(spec("exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	last, _, err := table.ExecProcess(spec("true"))
	if err != nil {
		t.Fatal(err)
	}
	if _, attached, err := table.AttachProcess(last.Spec.ID, 0); err != nil {
		t.Fatal(err)
	} else {
		readAll(t, attached) // to its end
		attached.Close()
	}
	r.Close()
	if n := table.Commands(); n != 2 {
		t.Errorf("%d commands run, want that in the background and that without a terminal", n)
	}
	if err := table.RemoveProcess(p.Spec.ID); err != nil {
		t.Error(err)
	}
	if err := table.RemoveProcess(job.ID); err != nil {
		t.Error(err)
	}
	if n := table.Commands(); n != 1 {
		t.Errorf("after one was removed: %d", n)
	}
}
