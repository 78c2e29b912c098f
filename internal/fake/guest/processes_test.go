package guest

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
)

func newTable(t *testing.T) *ProcessTable {
	t.Helper()
	table := NewProcessTable()
	t.Cleanup(table.Close)
	return table
}

// drain reads a stream to its end.
func drain(t *testing.T, s process.Stream) (stdout, stderr string, exit process.Exit) {
	t.Helper()
	for {
		chunk, err := s.Next()
		switch {
		case errors.Is(err, io.EOF):
			return stdout, stderr, exit
		case err != nil:
			t.Fatal(err)
		case chunk.Exit != nil:
			exit = *chunk.Exit
		case chunk.Channel == process.Stderr:
			stderr += string(chunk.Data)
		default:
			stdout += string(chunk.Data)
		}
	}
}

func TestPrograms(t *testing.T) {
	for name, c := range map[string]struct {
		spec           process.Spec
		stdout, stderr string
		exit           process.Exit
	}{
		"output":         {process.Spec{Shell: "echo out; echo err >&2"}, "out\n", "err\n", process.Exit{}},
		"a code":         {process.Spec{Shell: "exit 7"}, "", "", process.Exit{Code: 7}},
		"not found":      {process.Spec{Argv: []string{"/no/such"}}, "", "/no/such: not found\n", process.Exit{Code: 127}},
		"not executable": {process.Spec{Argv: []string{"/tmp"}}, "", "/tmp: Permission denied\n", process.Exit{Code: 126}},
		"a timeout":      {process.Spec{Shell: "sleep 60", Timeout: time.Millisecond}, "", "", process.Exit{Code: 137, Signal: "SIGKILL", TimedOut: true}},
		"a user":         {process.Spec{Argv: []string{"whoami"}, User: "daemon"}, "daemon\n", "", process.Exit{}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newTable(t).Exec(t.Context(), c.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			stdout, stderr, exit := drain(t, s)
			exit.At = time.Time{}
			if stdout != c.stdout || stderr != c.stderr || exit != c.exit {
				t.Errorf("it printed %q and %q and ended with %+v", stdout, stderr, exit)
			}
		})
	}
}

func TestErrorsOfProcesses(t *testing.T) {
	table := newTable(t)
	running, err := table.StartProcess(t.Context(), process.Spec{Shell: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	ended, err := table.Exec(t.Context(), process.Spec{Shell: "true"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ended.Close() }()
	drain(t, ended)
	_, userErr := table.Exec(t.Context(), process.Spec{Shell: "true", User: "else"})
	_, findErr := table.Process(t.Context(), "exec_none")
	_, attachErr := table.Attach(t.Context(), "exec_none", 0)
	id := ended.Process().ID
	for name, c := range map[string]struct {
		err  error
		kind errs.Kind
		code string
	}{
		"no such user":        {userErr, errs.Invalid, "invalid_user"},
		"no process":          {findErr, errs.NotFound, "process_not_found"},
		"nothing to attach":   {attachErr, errs.NotFound, "process_not_found"},
		"a signal too late":   {table.SignalProcess(t.Context(), id, "SIGTERM"), errs.Conflict, "process_ended"},
		"input too late":      {table.WriteStdin(t.Context(), id, []byte("x"), false), errs.Conflict, "stdin_closed"},
		"no terminal":         {table.ResizeProcess(t.Context(), running.ID, process.Size{Rows: 1, Cols: 1}), errs.Conflict, "no_terminal"},
		"nothing to remove":   {table.RemoveProcess(t.Context(), "exec_none"), errs.NotFound, "process_not_found"},
		"input, not a stream": {table.WriteStdin(t.Context(), "exec_none", nil, true), errs.NotFound, "process_not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			if !errs.Is(c.err, c.kind) || !errs.HasCode(c.err, c.code) {
				t.Errorf("the error is %v; want %s with code %s", c.err, c.kind, c.code)
			}
		})
	}
}

func TestAStreamCanBeAttachedAgain(t *testing.T) {
	table := newTable(t)
	s, err := table.Exec(t.Context(), process.Spec{Shell: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	chunk, err := s.Next()
	if err != nil || string(chunk.Data) != "first" {
		t.Fatalf("it printed %q, %v", chunk.Data, err)
	}
	_ = s.Close()
	if _, err := s.Next(); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a closed stream: %v", err)
	}
	if err := table.WriteStdin(t.Context(), s.Process().ID, []byte(" second"), true); err != nil {
		t.Fatal(err)
	}
	for offset, want := range map[int64]string{0: "first second", chunk.Offset: " second"} {
		again, err := table.Attach(t.Context(), s.Process().ID, offset)
		if err != nil {
			t.Fatal(err)
		}
		if out, _, exit := drain(t, again); out != want || exit.Code != 0 {
			t.Errorf("from %d it printed %q and ended with %+v", offset, out, exit)
		}
		_ = again.Close()
	}
	all, err := table.Processes(t.Context())
	if err != nil || len(all) != 1 || all[0].State != process.Exited || all[0].Output != int64(len("first second")) {
		t.Errorf("there are %+v, %v", all, err)
	}
}

func TestASignalEndsAProcess(t *testing.T) {
	table := newTable(t)
	s, err := table.Exec(t.Context(), process.Spec{Shell: "sleep 60"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Signal("SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if _, _, exit := drain(t, s); exit.Code != 128+15 || exit.Signal != "SIGTERM" || exit.TimedOut {
		t.Errorf("it ended with %+v", exit)
	}
}

func TestALostGuestEndsStreamsAndNotProcesses(t *testing.T) {
	table := newTable(t)
	s, err := table.Exec(t.Context(), process.Spec{Shell: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	table.SetLost(true)
	_, nextErr := s.Next()
	_, listErr := table.Processes(t.Context())
	_, startErr := table.StartProcess(t.Context(), process.Spec{Shell: "true"})
	for name, err := range map[string]error{"next": nextErr, "list": listErr, "start": startErr} {
		if !errs.HasCode(err, "agent_unavailable") {
			t.Errorf("%s: %v", name, err)
		}
	}
	table.SetLost(false)
	if p, err := table.Process(t.Context(), s.Process().ID); err != nil || p.State != process.Running {
		t.Errorf("it is %+v, %v", p, err)
	}
}

func TestOutputThatWasNotReadIsLost(t *testing.T) {
	table := newTable(t)
	table.Keep = 10
	first, err := table.Exec(t.Context(), process.Spec{Shell: "cat", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	text := strings.Repeat("x", 8)
	for range 4 {
		if _, err := first.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if chunk, err := first.Next(); err != nil || string(chunk.Data) != text {
			t.Fatalf("it printed %q, %v", chunk.Data, err)
		}
	}
	late, err := table.Attach(t.Context(), first.Process().ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Close() }()
	if chunk, err := late.Next(); err != nil || chunk.Lost == 0 || chunk.Lost != chunk.Offset {
		t.Errorf("it begins with %+v, %v", chunk, err)
	}
}

func TestUsesAreCounted(t *testing.T) {
	v := &VM[file.Guest, file.Mode]{ID: "vm_a", OwnerID: "acc_a"}
	v.Asleep.Store(true)
	open := func(scope access.Scope, id string, mode file.Mode) (func(), error) {
		_, release, err := v.Open(t.Context(), scope, id, mode)
		return release, err
	}
	for name, c := range map[string]struct {
		scope access.Scope
		id    string
		mode  file.Mode
		code  string
	}{
		"of another user": {access.Owner("acc_b"), "vm_a", file.Wake, "vm_not_found"},
		"another VM":      {access.Owner("acc_a"), "vm_b", file.Wake, "vm_not_found"},
		"asleep":          {access.Owner("acc_a"), "vm_a", file.NoWake, "vm_not_running"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := open(c.scope, c.id, c.mode); !errs.HasCode(err, c.code) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	release, err := open(access.Owner("acc_a"), "vm_a", file.Wake)
	if err != nil || v.Asleep.Load() || v.Opened() != 1 || v.InUse() != 1 || v.Check() == nil {
		t.Fatalf("opened %d times, in use %d times, %v, %v", v.Opened(), v.InUse(), v.Check(), err)
	}
	release()
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	release()
	if err := v.Check(); err == nil {
		t.Error("a second release was not seen")
	}
}
