package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/agent/proc"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/process"
)

// processAgent is an agent that runs processes on the host that runs the test.
type processAgent struct {
	*fakeAgent
	wire.ProcessHandler
}

// serve serves connections one after the other, as a guest's port does.
func serve(t *testing.T, conns <-chan net.Conn, h wire.Handler) (cut func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	cuts := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case conn := <-conns:
				stop := make(chan struct{})
				go func() {
					select {
					case <-cuts:
						_ = conn.Close()
					case <-stop:
					}
				}()
				if server, err := wire.Accept(conn); err == nil {
					_ = server.Run(ctx, h)
				}
				_ = conn.Close()
				close(stop)
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func() { cuts <- struct{}{} }
}

// openProcesses connects to an agent that runs processes. cut ends the current
// connection.
func openProcesses(t *testing.T) (g process.Guest, cut func()) {
	t.Helper()
	table := proc.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = table.Close() })
	a := newFakeAgent()
	cut = serve(t, a.conns, processAgent{a, table})
	session, _ := connect(t, a.dial)
	return session, cut
}

// line returns the spec of a shell line, which runs as the user of the test.
func line(text string) process.Spec {
	return process.Spec{Shell: text, User: strconv.Itoa(os.Geteuid())}
}

// collected is the output of a stream.
type collected struct {
	stdout, stderr string
	lost           int64
	exit           *process.Exit
}

// collect reads a stream that begins at offset at to its end.
func collect(stream process.Stream, at int64) (collected, error) {
	var c collected
	for {
		chunk, err := stream.Next()
		if errors.Is(err, io.EOF) && c.exit != nil {
			return c, nil
		}
		if err != nil {
			return c, err
		}
		if at += int64(len(chunk.Data)) + chunk.Lost; at != chunk.Offset {
			return c, fmt.Errorf("offset %d, want %d", chunk.Offset, at)
		}
		c.lost += chunk.Lost
		c.exit = chunk.Exit
		if chunk.Channel == process.Stderr {
			c.stderr += string(chunk.Data)
		} else {
			c.stdout += string(chunk.Data)
		}
	}
}

func run1(t *testing.T, g process.Guest, spec process.Spec) collected {
	t.Helper()
	stream, err := g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	c, err := collect(stream, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func requireError(t *testing.T, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Errorf("got %v (%v), want %s", err, errs.KindOf(err), code)
	}
}

func TestExecThroughASession(t *testing.T) {
	g, _ := openProcesses(t)
	spec := line("echo out; echo err >&2; echo $A; exit 3")
	spec.Env = map[string]string{"A": "b"}
	stream, err := g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	p := stream.Process()
	c, err := collect(stream, 0)
	if err != nil || c.stdout != "out\nb\n" || c.stderr != "err\n" || c.exit.Code != 3 || c.lost != 0 {
		t.Errorf("got %+v, %+v, %v", c, c.exit, err)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	if p.State != process.Running || p.Exit != nil || p.PID == 0 || p.Spec.Shell != spec.Shell || p.Spec.Env != nil || time.Since(p.StartedAt) > time.Minute {
		t.Errorf("it was %+v", p)
	}
	after, err := g.Process(t.Context(), p.ID)
	if err != nil || after.State != process.Exited || after.Exit.Code != 3 || after.Output != 10 {
		t.Errorf("it is %+v, %v", after, err)
	}
	all, err := g.Processes(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != p.ID {
		t.Errorf("all: %+v, %v", all, err)
	}
	if err := g.RemoveProcess(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
	_, err = g.Process(t.Context(), p.ID)
	requireError(t, err, errs.NotFound, "process_not_found")
}

func TestErrorsOfProcessesHaveCodes(t *testing.T) {
	g, _ := openProcesses(t)
	ctx := t.Context()
	for code, change := range map[string]func(*process.Spec){
		"invalid_user":    func(s *process.Spec) { s.User = "no-such-user-here" },
		"invalid_cwd":     func(s *process.Spec) { s.Dir = "/no/such/directory" },
		"invalid_command": func(s *process.Spec) { s.Shell = "" },
	} {
		spec := line("true")
		change(&spec)
		_, err := g.Exec(ctx, spec)
		requireError(t, err, errs.Invalid, code)
		_, err = g.StartProcess(ctx, spec)
		requireError(t, err, errs.Invalid, code)
	}
	const none = "exec_aaaaaaaaaaaa"
	_, err := g.Attach(ctx, none, 0)
	requireError(t, err, errs.NotFound, "process_not_found")
	requireError(t, g.WriteStdin(ctx, none, nil, true), errs.NotFound, "process_not_found")
	requireError(t, g.SignalProcess(ctx, none, "TERM"), errs.NotFound, "process_not_found")
	requireError(t, g.SignalProcess(ctx, none, "\x1b"), errs.Invalid, "invalid_signal")

	p, err := g.StartProcess(ctx, line("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Attach(ctx, p.ID, 1)
	requireError(t, err, errs.Invalid, "invalid_offset")
	requireError(t, g.ResizeProcess(ctx, p.ID, process.Size{Rows: 1, Cols: 1}), errs.Conflict, "no_terminal")
	requireError(t, g.WriteStdin(ctx, p.ID, []byte("x"), false), errs.Conflict, "stdin_closed")
	stream, err := g.Attach(ctx, p.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	_, err = stream.Write([]byte("x"))
	requireError(t, err, errs.Conflict, "stdin_closed")
	if err := stream.Signal("KILL"); err != nil {
		t.Fatal(err)
	}
	if c, err := collect(stream, 0); err != nil || c.exit.Signal != "SIGKILL" || c.exit.Code != 137 {
		t.Errorf("got %+v, %v", c, err)
	}
	requireError(t, stream.Signal("KILL"), errs.Conflict, "process_ended")
}

func TestStdinAndTerminalThroughASession(t *testing.T) {
	g, _ := openProcesses(t)
	spec := line("cat; echo done")
	spec.Stdin = true
	stream, err := g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	big := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10)
	wrote := make(chan error, 1)
	go func() {
		_, err := stream.Write(big)
		wrote <- errors.Join(err, stream.CloseStdin())
	}()
	if c, err := collect(stream, 0); err != nil || c.stdout != string(big)+"done\n" {
		t.Errorf("%d bytes read, %v", len(c.stdout), err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}

	spec = line("stty size; read x; stty size; cat")
	spec.Stdin, spec.TTY = true, &process.Size{Rows: 5, Cols: 6}
	stream, err = g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if err := stream.Resize(process.Size{Rows: 7, Cols: 8}); err != nil {
		t.Error(err)
	}
	if err := g.WriteStdin(t.Context(), stream.Process().ID, []byte("\n"), true); err != nil {
		t.Error(err)
	}
	c, err := collect(stream, 0)
	if err != nil || !strings.Contains(c.stdout, "7 8\r\n") || c.exit.Code != 0 {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestProcessOutlivesItsSession cuts the session and attaches in the next.
func TestProcessOutlivesItsSession(t *testing.T) {
	g, cut := openProcesses(t)
	spec := line("echo before; read x; echo after; exit 6")
	spec.Stdin = true
	stream, err := g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	chunk, err := stream.Next()
	if err != nil || string(chunk.Data) != "before\n" {
		t.Fatalf("%q, %v", chunk.Data, err)
	}
	at := chunk.Offset
	cut()
	_, err = stream.Next()
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	_ = stream.Close()
	id := stream.Process().ID
	if err := g.WriteStdin(t.Context(), id, []byte("\n"), true); err != nil {
		t.Fatal(err)
	}
	stream, err = g.Attach(t.Context(), id, at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if c, err := collect(stream, at); err != nil || c.stdout != "after\n" || c.exit.Code != 6 || c.lost != 0 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestAgentThatIsTooOld(t *testing.T) {
	a := newFakeAgent()
	g, _ := connect(t, a.dial)
	cut := a.answer(t)
	defer cut()
	_, err := g.Exec(t.Context(), line("true"))
	requireError(t, err, errs.Unsupported, "agent_too_old")
	_, err = g.Processes(t.Context())
	requireError(t, err, errs.Unsupported, "agent_too_old")
}

func TestGuestWithoutAnAgent(t *testing.T) {
	t.Parallel()
	g, _ := connect(t, func(context.Context) (net.Conn, error) { return nil, errors.New("refused") })
	began := time.Now()
	_, err := g.Exec(t.Context(), line("true"))
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	if took := time.Since(began); took < 5*time.Second || took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestLostAgentIsNoticed has an agent that hangs.
func TestLostAgentIsNoticed(t *testing.T) {
	t.Parallel()
	a := newFakeAgent()
	table := proc.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = table.Close() })
	conns := make(chan net.Conn, 16)
	cut := serve(t, conns, processAgent{a, table})
	stopped := make(chan struct{})
	g, _ := connect(t, func(context.Context) (net.Conn, error) {
		host, agent := net.Pipe()
		conns <- agent
		return &stoppable{Conn: host, stopped: stopped}, nil
	})
	stream, err := g.Exec(t.Context(), line("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	close(stopped)
	_, err = stream.Next()
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("it took %v", took)
	}
	_ = stream.Close()
	cut()
}

// stoppable is a connection that returns nothing more once it is stopped.
type stoppable struct {
	net.Conn
	stopped chan struct{}
}

func (s *stoppable) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	select {
	case <-s.stopped:
		buf := make([]byte, 4096)
		for err == nil {
			_, err = s.Conn.Read(buf)
		}
		return 0, err
	default:
		return n, err
	}
}

// TestManyExecsAtOnce runs processes at once, and then attaches to one until the
// agent refuses.
func TestManyExecsAtOnce(t *testing.T) {
	g, _ := openProcesses(t)
	results := make(chan error)
	const several = 60
	for i := range several {
		go func() {
			stream, err := g.Exec(context.Background(), line(fmt.Sprintf("echo %d", i)))
			if err != nil {
				results <- err
				return
			}
			defer func() { _ = stream.Close() }()
			if c, err := collect(stream, 0); err != nil || c.stdout != fmt.Sprintf("%d\n", i) {
				results <- fmt.Errorf("%d: %+v, %w", i, c, err)
				return
			}
			results <- nil
		}()
	}
	for range several {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	p, err := g.StartProcess(t.Context(), line("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		var stream process.Stream
		if stream, err = g.Attach(t.Context(), p.ID, 0); err == nil {
			defer func() { _ = stream.Close() }()
		}
	}
	requireError(t, err, errs.TooMany, "guest_busy")
	if err := g.SignalProcess(t.Context(), p.ID, "TERM"); err != nil {
		t.Errorf("another request: %v", err)
	}
}

// TestExecsLeakNothing counts for both ends, which are one program here.
func TestExecsLeakNothing(t *testing.T) {
	g, _ := openProcesses(t)
	run := func(n int) {
		for i := range n {
			spec := line("cat")
			spec.Stdin = i%2 == 0
			stream, err := g.Exec(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.CloseStdin(); err != nil {
				t.Fatal(err)
			}
			if c, err := collect(stream, 0); err != nil || c.exit.Code != 0 {
				t.Fatalf("%+v, %v", c, err)
			}
			_ = stream.Close()
		}
	}
	run(20)
	goroutines, files := countLeaks(t, 0, 0)
	run(1000)
	afterwards, filesAfterwards := countLeaks(t, goroutines, files)
	if afterwards > goroutines || filesAfterwards > files {
		t.Errorf("%d goroutines and %d files became %d and %d", goroutines, files, afterwards, filesAfterwards)
	}
}

// countLeaks counts goroutines and files. It waits up to 2 s until they are at most as
// many as given.
func countLeaks(t *testing.T, goroutines, files int) (nowGoroutines, nowFiles int) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 40 {
		<-tick.C
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		nowGoroutines, nowFiles = runtime.NumGoroutine(), len(entries)
		if nowGoroutines <= goroutines && nowFiles <= files {
			break
		}
	}
	return nowGoroutines, nowFiles
}

// hostileProcesses sends the processes and chunks that the test sets.
type hostileProcesses struct {
	wire.ProcessHandler
	sent wire.Process
	next []wire.ProcessChunk
}

func (l *hostileProcesses) answer(id string) wire.Process {
	p := l.sent
	if p.Spec.ID == "" {
		p.Spec.ID = id
	}
	return p
}

func (l *hostileProcesses) StartProcess(spec wire.ProcessSpec) (wire.Process, error) {
	return l.answer(spec.ID), nil
}

func (l *hostileProcesses) ExecProcess(spec wire.ProcessSpec) (wire.Process, wire.ProcessAttachment, error) {
	return l.answer(spec.ID), l, nil
}
func (l *hostileProcesses) Process(id string) (wire.Process, error) { return l.answer(id), nil }
func (l *hostileProcesses) Processes() []wire.Process               { return []wire.Process{l.sent} }
func (l *hostileProcesses) Close()                                  {}

func (l *hostileProcesses) Next(ctx context.Context, idle func() error) (wire.ProcessChunk, error) {
	if len(l.next) == 0 {
		_ = idle()
		<-ctx.Done()
		return wire.ProcessChunk{}, ctx.Err()
	}
	c := l.next[0]
	l.next = l.next[1:]
	return c, nil
}

func openHostileProcesses(t *testing.T, l *hostileProcesses) process.Guest {
	t.Helper()
	a := newFakeAgent()
	serve(t, a.conns, struct {
		*fakeAgent
		wire.ProcessHandler
	}{a, l})
	g, _ := connect(t, a.dial)
	return g
}

func TestInvalidProcessesAreRefused(t *testing.T) {
	for name, sent := range map[string]wire.Process{
		"another's id": {Spec: wire.ProcessSpec{ID: "exec_aaaaaaaaaaaa"}},
		"no id":        {Spec: wire.ProcessSpec{ID: "../../x"}},
		"a pid":        {PID: -1},
		"a large pid":  {PID: 1 << 30},
		"output":       {Output: -1},
		"a timeout":    {Spec: wire.ProcessSpec{Timeout: -1}},
		"a code":       {Exit: &wire.ProcessExit{Code: 256}},
		"a signal":     {Exit: &wire.ProcessExit{Signal: "SIG\x1b[2J"}},
	} {
		g := openHostileProcesses(t, &hostileProcesses{sent: sent})
		_, err := g.Exec(t.Context(), line("true"))
		requireError(t, err, errs.Unavailable, "agent_unavailable")
		_, err = g.StartProcess(t.Context(), line("true"))
		requireError(t, err, errs.Unavailable, "agent_unavailable")
		if name == "another's id" {
			continue // valid in a list
		}
		if sent.Spec.ID == "" {
			_, err = g.Process(t.Context(), "exec_bbbbbbbbbbbb")
			requireError(t, err, errs.Unavailable, "agent_unavailable")
		}
		_, err = g.Processes(t.Context())
		requireError(t, err, errs.Unavailable, "agent_unavailable")
	}
}

func TestProcessIsMadePrintable(t *testing.T) {
	sent := wire.Process{Spec: wire.ProcessSpec{
		Argv: []string{"\x1b]0;owned\a", strings.Repeat("ä", 3000), "more"}, Dir: "/\n", User: "\x00", Tag: "a\tb",
	}}
	g := openHostileProcesses(t, &hostileProcesses{sent: sent})
	p, err := g.StartProcess(t.Context(), line("true"))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(p.Spec.Argv, "") + p.Spec.Dir + p.Spec.User + p.Spec.Tag
	if p.Spec.Tag == "" {
		t.Error("the tag is missing")
	}
	if len(all) > wire.MaxCommand || strings.ContainsAny(all, "\x1b\a\n\t\x00") || len(p.Spec.Argv) != 2 {
		t.Errorf("%d bytes: %+v", len(all), p.Spec)
	}
}

func TestInvalidChunkIsAnError(t *testing.T) {
	for name, next := range map[string][]wire.ProcessChunk{
		"more lost than an offset holds": {{Lost: 1<<63 - 1}, {Lost: 1}},
		"an invalid exit":                {{Exit: &wire.ProcessExit{Code: -1}}},
	} {
		g := openHostileProcesses(t, &hostileProcesses{next: next})
		stream, err := g.Exec(t.Context(), line("true"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = stream.Next()
		}
		if !errs.HasCode(err, "agent_unavailable") {
			t.Errorf("%s: %v", name, err)
		}
		_ = stream.Close()
	}
}
