//go:build system

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	execMem    = 192 // MiB: many processes at once
	execLimit  = time.Minute
	manyExecs  = 1000
	parallel   = 50
	streamSize = 4 << 20          // bytes
	agentLimit = 40 * time.Second // for the error about an agent that does not answer
)

// testExec runs commands in a guest without a network, sshd and cloud-init.
func testExec(t *testing.T, w *world) {
	body := minimal()
	body.Name, body.EnableNetwork, body.MemMiB = "execs", new(false), new(execMem)
	v := w.create(t, body, client.CreateOptions{Wait: "ready"})
	g := &execGuest{world: w, vm: v}
	for _, part := range []struct {
		name string
		run  func(*testing.T, *execGuest)
	}{
		{"run", testRunExec},
		{"stream", testStreamExec},
		{"output is closed", testClosedOutput},
		{"command line", testExecCommandLine},
		{"terminal", testExecTerminal},
		{"one after the other", testManyExecs},
		{"at the same time", testExecsAtOnce},
		{"hatchd is killed meanwhile", testExecOverRestart},
		{"the agent is stopped", testStoppedAgent},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, g) })
	}
}

// testExecUnderSystemd runs commands in a Debian guest, whose init is systemd.
func testExecUnderSystemd(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	const line = `echo $(whoami) $(pwd) $(cat /proc/1/comm) $(systemctl show -p ActiveState --value ssh)`
	if got := w.inside(t, v, line); got != "root /root systemd active" {
		t.Errorf("root gets %q", got)
	}
	const ask = `hatch-agent keep-awake 600 && python3 -c "
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('/run/hatch/agent.sock')
s.sendall(b'keep-awake 0\n')
print(s.recv(100).decode())"`
	if got := w.inside(t, v, ask); got != "kept awake for 10m0s\nok 0" {
		t.Errorf("a request to keep the guest awake is answered by %q", got)
	}
	result, err := w.client.RunExec(t.Context(), v.ID, api.RunExec{User: debianUser, Command: api.Command{Shell: "id -un; id -Gn; pwd; sudo -n id -u"}})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("a command of %s's: %v, %+v", debianUser, err, result)
	}
	lines := strings.Split(result.Stdout, "\n")
	if len(lines) < 4 || lines[0] != debianUser || !strings.Contains(lines[1], "sudo") || lines[2] != "/home/"+debianUser || lines[3] != "0" {
		t.Errorf("%s gets %q", debianUser, result.Stdout)
	}
	exec, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Argv: []string{"sleep", "600"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.inside(t, v, "systemctl daemon-reexec && systemctl restart ssh") // systemd does not kill what the agent started
	if now, err := w.client.GetExec(t.Context(), v.ID, exec.ID); err != nil || now.State != "running" {
		t.Errorf("in the background it is %q, %v", now.State, err)
	}
	if err := w.client.DeleteExec(t.Context(), v.ID, exec.ID); err != nil {
		t.Error(err)
	}
}

// execGuest is the guest of testExec.
type execGuest struct {
	*world
	vm    api.VM
	lines int // typed into its console, which replays earlier ones
}

// run runs a command to its end.
func (g *execGuest) run(t *testing.T, body api.RunExec) api.ExecResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	r, err := g.client.RunExec(ctx, g.vm.ID, body)
	if err != nil {
		t.Fatalf("cannot run %+v: %v", body.Command, err)
	}
	return r
}

func (g *execGuest) sh(t *testing.T, text string) api.ExecResult {
	t.Helper()
	return g.run(t, line(text))
}

func line(text string) api.RunExec { return api.RunExec{Command: api.Command{Shell: text}} }

func argv(words ...string) api.RunExec { return api.RunExec{Command: api.Command{Argv: words}} }

func testRunExec(t *testing.T, g *execGuest) {
	long := strings.Repeat("x", 115<<10)
	for _, c := range []struct {
		name           string
		body           api.RunExec
		stdout, stderr string
		code           int
	}{
		{"output and exit code", line("echo out; echo err >&2; exit 3"), "out\n", "err\n", 3},
		{"arguments", argv("echo", "a  b", "$HOME", ""), "a  b $HOME \n", "", 0},
		{"environment", api.RunExec{Command: api.Command{Shell: `echo "$A:$(pwd):$(id -un)"`}, Env: map[string]string{"A": "1 2"}, Cwd: "/tmp"}, "1 2:/tmp:root\n", "", 0},
		{
			"bytes that are no text", api.RunExec{
				Command: api.Command{Argv: []string{"sh", "-c", `printf %s "$1$A$(pwd)" | od -An -tx1`, "sh", "\xe9"}}, Env: map[string]string{"A": "\xff"},
			}, " e9 ff 2f 72 6f 6f 74\n", "", 0,
		},
		{"input", api.RunExec{Command: api.Command{Argv: []string{"cat"}}, Stdin: "in"}, "in", "", 0},
		{"no input", argv("cat"), "", "", 0},
		{"sigterm", line("kill -TERM $$"), "", "", 143},
		{"sigkill", line("kill -KILL $$"), "", "", 137},
		{"a long argument", argv("echo", long), long + "\n", "", 0},
		{"a long line", line(": " + long), "", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := g.run(t, c.body)
			if r.Stdout != c.stdout || r.Stderr != c.stderr || r.ExitCode != c.code || r.TimedOut {
				t.Errorf("%.200v: %+.300v", c.body.Command, r)
			}
		})
	}
	if r := g.run(t, argv("no-such-program")); r.ExitCode != 127 || !strings.Contains(r.Stderr, "no-such-program") {
		t.Errorf("%+v", r)
	}
	if r := g.run(t, argv("/etc/passwd")); r.ExitCode != 126 || r.Stderr == "" {
		t.Errorf("%+v", r)
	}
	_, err := g.client.RunExec(t.Context(), g.vm.ID, api.RunExec{Command: api.Command{Argv: []string{"true"}}, User: "no-such-user"})
	if !client.HasCode(err, "invalid_user") {
		t.Errorf("a command of an unknown user: %v", err)
	}
	requireTruncation(t, g)
	requireTimeout(t, g)
}

func requireTruncation(t *testing.T, g *execGuest) {
	t.Helper()
	r := g.sh(t, "head -c 3000000 /dev/zero | tr '\\0' z; echo end >&2")
	if len(r.Stdout) != 1<<20 || strings.Trim(r.Stdout, "z") != "" || !r.StdoutTruncated || r.Stderr != "end\n" || r.StderrTruncated || r.ExitCode != 0 {
		t.Errorf("%d bytes of stdout, truncated %v; stderr %q, truncated %v; code %d", len(r.Stdout), r.StdoutTruncated, r.Stderr, r.StderrTruncated, r.ExitCode)
	}
}

// requireTimeout checks that a timeout kills a command and its children, and so does
// a client that goes away.
func requireTimeout(t *testing.T, g *execGuest) {
	t.Helper()
	body := line("sleep 4321 & sleep 4321")
	body.TimeoutMS = 300
	began := time.Now()
	if r := g.run(t, body); !r.TimedOut || r.ExitCode != 137 || r.Signal != "SIGKILL" {
		t.Errorf("%+v", r)
	}
	if late := time.Since(began); late > normalReply {
		t.Errorf("the timeout came after %s", late)
	}
	ctx, leave := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer leave()
	if _, err := g.client.RunExec(ctx, g.vm.ID, line("sleep 4321")); err == nil {
		t.Error("the request was answered")
	}
	g.awaitNone(t, "sleep 4321")
}

// awaitNone waits until no process has this command line.
func (g *execGuest) awaitNone(t *testing.T, command string) {
	t.Helper()
	var left string
	err := sandbox.Poll(normalReply, func() (bool, error) {
		left = g.sh(t, `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done 2> /dev/null`).Stdout
		return !strings.Contains("\n"+left, "\n"+command), nil
	})
	if err != nil {
		t.Errorf("%q still runs: %v\n%s", command, err, left)
	}
}

func testStreamExec(t *testing.T, g *execGuest) {
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	body := line("cat; echo done >&2; exit 5")
	body.StdinOpen = true
	s, err := g.client.OpenExec(ctx, g.vm.ID, body)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	sent, got := sha256.New(), sha256.New()
	began := time.Now()
	wrote := make(chan error, 1)
	go func() {
		_, err := io.Copy(s, io.TeeReader(randomBytes(streamSize), sent))
		wrote <- errors.Join(err, s.CloseStdin())
	}()
	var output bytes.Buffer
	exit, err := s.Copy(got, &output)
	if err := errors.Join(err, <-wrote); err != nil || exit.Code != 5 || output.String() != "done\n" {
		t.Errorf("%+v, %q, %v", exit, &output, err)
	}
	took(t, fmt.Sprintf("%d MiB through cat", streamSize>>20), began)
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("the output differs from the input")
	}

	// A signal arrives although the command does not read its input.
	body = line("trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.1; done")
	body.StdinOpen = true
	if s, err = g.client.OpenExec(ctx, g.vm.ID, body); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	go func() { _, _ = io.Copy(s, randomBytes(1<<20)) }()
	if next, err := s.Next(); err != nil || string(next.Data) != "ready\n" {
		t.Fatalf("%q, %v", next.Data, err)
	}
	if err := s.Signal(ctx, "USR1"); err != nil {
		t.Fatal(err)
	}
	output.Reset()
	if exit, err := s.Copy(&output, &output); err != nil || exit.Code != 9 || !strings.Contains(output.String(), "caught\n") { // the shell may report its sleep, too
		t.Errorf("%+v, %q, %v", exit, &output, err)
	}
}

// testClosedOutput closes the output of a command that writes for ever.
func testClosedOutput(t *testing.T, g *execGuest) {
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	s, err := g.client.OpenExec(ctx, g.vm.ID, api.RunExec{Command: api.Command{Argv: []string{"yes", "to all"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if next, err := s.Next(); err != nil || next.Exit != nil {
		t.Fatalf("it writes nothing: %+v, %v", next, err)
	}
	s.CloseStdout()
	if exit, err := s.Copy(io.Discard, io.Discard); err != nil || exit.Signal != "SIGPIPE" || exit.Code != 141 {
		t.Errorf("it ends with %+v, %v", exit, err)
	}
	g.awaitNone(t, "yes to all")
}

func testExecCommandLine(t *testing.T, g *execGuest) {
	if got := g.hatch(t, "exec", g.vm.Name, "--", "uname", "-s"); got != "Linux\n" {
		t.Errorf("hatch exec prints %q", got)
	}
	for text, want := range map[string]string{"exit 7": "exit status 7", "no-such-program": "exit status 127", "kill -INT $$": "exit status 130"} {
		t.Run(text, func(t *testing.T) {
			if _, err := g.tryHatch("exec", g.vm.Name, "sh", "-c", text); err == nil || !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		})
	}
	id := strings.TrimSpace(g.hatch(t, "exec", "-d", g.vm.Name, "sh", "-c", "echo started; sleep 4322"))
	if got := g.hatch(t, "execs", g.vm.Name); !strings.Contains(got, id) || !strings.Contains(got, "sleep 4322") {
		t.Errorf("hatch execs prints\n%s", got)
	}
	g.hatch(t, "execs", "rm", g.vm.Name, id)
	g.awaitNone(t, "sleep 4322")
}

// testExecTerminal works on a terminal as a user does: a shell, vi and top, a window
// that changes its size, and ctrl-C.
func testExecTerminal(t *testing.T, g *execGuest) {
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	cmd := g.command(ctx, "exec", "-it", g.vm.Name, "sh")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	keyboard, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = keyboard.Close() }()
	s := &terminal{conn: keyboard}
	if got := s.run(t, "stty size; echo $TERM"); got != "24 80\nxterm" {
		t.Errorf("the terminal is %q", got)
	}
	s.write(t, "vi /tmp/written\n")
	s.await(t, "~\x1b") // lines after the end of the file, drawn
	s.write(t, "ihello from vi")
	s.await(t, "hello from vi")
	s.write(t, "\x1b") // alone: otherwise it starts an escape sequence
	s.await(t, "- /tmp/written [Modified]")
	s.write(t, ":wq\r")
	if got := s.run(t, "cat /tmp/written"); got != "hello from vi" {
		t.Errorf("vi has written %q", got)
	}
	if err := pty.Setsize(keyboard, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	err = sandbox.Poll(normalReply, func() (bool, error) { return s.run(t, "stty size") == "30 100", nil })
	if err != nil {
		t.Errorf("the new size is not seen: %v", err)
	}
	s.write(t, "top\n")
	s.await(t, "Load average")
	s.write(t, "\x03")
	if got := s.run(t, "echo alive"); got != "alive" {
		t.Errorf("after ctrl-C the shell prints %q", got)
	}
	s.write(t, "exit 6\n")
	if _, err := io.Copy(io.Discard, keyboard); err != nil && !errors.Is(err, syscall.EIO) { // EIO is the end of a terminal
		t.Error(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("hatch ends with %v", err)
	}
}

// testManyExecs runs many commands, which must leave no descriptors, threads or
// memory behind.
func testManyExecs(t *testing.T, g *execGuest) {
	for range 20 { // some resources are made once
		g.sh(t, "true")
	}
	before := g.resources(t)
	spent := make([]time.Duration, manyExecs)
	began := time.Now()
	for i := range manyExecs {
		start := time.Now()
		if r := g.run(t, argv("echo", fmt.Sprint(i))); r.Stdout != fmt.Sprintf("%d\n", i) {
			t.Fatalf("%+v", r)
		}
		spent[i] = time.Since(start)
	}
	took(t, fmt.Sprintf("%d execs", manyExecs), began)
	slices.Sort(spent)
	t.Logf("each: p50 %s, p99 %s", spent[manyExecs/2].Round(time.Microsecond*10), spent[manyExecs*99/100].Round(time.Microsecond*10))
	after := g.resources(t)
	t.Logf("before %+v, after %+v", before, after)
	if after.fds > before.fds+5 || after.agentFDs > before.agentFDs+2 || after.threads > before.threads+20 || after.agentThreads > before.agentThreads+8 {
		t.Errorf("the resources are %+v, before %+v", after, before)
	}
	if grown := after.agentKiB - before.agentKiB; grown > 8<<10 {
		t.Errorf("the agent has grown by %d KiB", grown)
	}
}

// resources are those of hatchd and of the agent.
type resources struct{ fds, threads, agentFDs, agentThreads, agentKiB int }

func (g *execGuest) resources(t *testing.T) resources {
	t.Helper()
	var r resources
	for dir, n := range map[string]*int{"fd": &r.fds, "task": &r.threads} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", g.daemon.PID(), dir))
		if err != nil {
			t.Fatal(err)
		}
		*n = len(entries)
	}
	out := g.sh(t, `p=/proc/$(pidof hatch-agent | tr ' ' '\n' | tail -n 1); echo $(ls $p/fd | wc -l) $(ls $p/task | wc -l) $(awk '/VmRSS/ {print $2}' $p/status)`)
	if _, err := fmt.Sscan(out.Stdout, &r.agentFDs, &r.agentThreads, &r.agentKiB); err != nil {
		t.Fatalf("%+v: %v", out, err)
	}
	return r
}

func testExecsAtOnce(t *testing.T, g *execGuest) {
	before := g.resources(t)
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	began := time.Now()
	var all sync.WaitGroup
	for i := range parallel {
		all.Go(func() {
			r, err := g.client.RunExec(ctx, g.vm.ID, api.RunExec{Command: api.Command{Shell: fmt.Sprintf("cat; sleep 1; exit %d", i)}, Stdin: fmt.Sprint("number ", i)})
			if err != nil || r.ExitCode != i || r.Stdout != fmt.Sprint("number ", i) {
				t.Errorf("%d: %+v, %v", i, r, err)
			}
		})
	}
	all.Wait()
	took(t, fmt.Sprintf("%d execs at once, each a second and more", parallel), began)
	err := sandbox.Poll(normalReply, func() (bool, error) {
		now := g.resources(t)
		return now.fds <= before.fds+parallel/5 && now.agentFDs <= before.agentFDs+2, nil // a few idle connections stay open
	})
	if err != nil {
		t.Errorf("before %+v, after %+v", before, g.resources(t))
	}
}

// testExecOverRestart kills hatchd under a command in the background, and under one
// with an attached client.
func testExecOverRestart(t *testing.T, g *execGuest) {
	ctx, cancel := context.WithTimeout(t.Context(), execLimit)
	defer cancel()
	const count = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; if [ $((i % 20)) = 0 ]; then sleep 0.1; fi; done; exit 8"
	started, err := g.client.StartExec(ctx, g.vm.ID, line(count))
	if err != nil {
		t.Fatal(err)
	}
	attached, err := g.client.OpenExec(ctx, g.vm.ID, line(count))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = attached.Close() }()
	first, err := attached.Next()
	if err != nil {
		t.Fatal(err)
	}
	g.stopDaemon(t, syscall.SIGKILL)
	g.startDaemon(t)

	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintln(&want, "line", i+1)
	}
	got := bytes.NewBuffer(slices.Clone(first.Data))
	if exit, err := attached.Copy(got, got); err != nil || exit.Code != 8 || got.String() != want.String() {
		t.Errorf("the attached client has %d bytes of %d, %+v, %v", got.Len(), want.Len(), exit, err)
	}
	again, err := g.client.AttachExec(ctx, g.vm.ID, started.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	got.Reset()
	if exit, err := again.Copy(got, got); err != nil || exit.Code != 8 || got.String() != want.String() {
		t.Errorf("the command in the background has %d bytes of %d, %+v, %v", got.Len(), want.Len(), exit, err)
	}
	found, err := g.client.GetExec(ctx, g.vm.ID, started.ID)
	if err != nil || found.State != api.ExecExited || found.ExitCode == nil || *found.ExitCode != 8 || found.OutputBytes != int64(want.Len()) {
		t.Errorf("found %+v, %v", found, err)
	}
}

// testStoppedAgent stops the agent, and kills it. Commands must fail with an error,
// and the console and a stop must work. It leaves the VM stopped.
func testStoppedAgent(t *testing.T, g *execGuest) {
	const agents = "$(pidof hatch-agent)"
	waiting := make(chan error, 1)
	s, err := g.client.OpenExec(t.Context(), g.vm.ID, line("sleep 4323"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	go func() {
		_, err := s.Copy(io.Discard, io.Discard)
		waiting <- err
	}()
	g.requireNoAgent(t, "kill -STOP "+agents) // the agent cannot answer this one
	g.requireNoAgent(t, "true")
	if _, err := g.tryHatch("exec", g.vm.Name, "true"); err == nil || !strings.Contains(err.Error(), "exit status 125") || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("hatch exec: %v", err)
	}
	if err := <-waiting; !client.HasCode(err, "agent_unavailable") {
		t.Errorf("the attached client gets %v", err)
	}
	if got := g.onConsole(t, "kill -CONT "+agents+"; echo continued"); got != "continued" {
		t.Errorf("the console prints %q", got)
	}
	g.await(t, g.vm.ID, "agent", normalReply)
	if r := g.sh(t, "echo back"); r.Stdout != "back\n" {
		t.Errorf("%+v", r)
	}

	g.onConsole(t, "kill -KILL "+agents)
	g.requireNoAgent(t, "true")
	if got := g.onConsole(t, "echo still here"); got != "still here" {
		t.Errorf("the console prints %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	began := time.Now()
	if stopped, err := g.client.StopVM(ctx, g.vm.ID); err != nil || stopped.State != api.StateStopped {
		t.Errorf("stop without an agent: %+v, %v", stopped, err)
	}
	took(t, "stop without an agent", began)
	_, err = g.client.RunExec(ctx, g.vm.ID, line("true"))
	if !client.HasCode(err, "vm_not_running") {
		t.Errorf("after the stop: %v", err)
	}
}

// requireNoAgent runs a line, which must fail in time because of the agent.
func (g *execGuest) requireNoAgent(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*agentLimit)
	defer cancel()
	began := time.Now()
	_, err := g.client.RunExec(ctx, g.vm.ID, line(text))
	if !client.HasCode(err, "agent_unavailable") || time.Since(began) > agentLimit {
		t.Errorf("%s: after %s: %v", text, time.Since(began), err)
	}
	took(t, "the error about the agent", began)
}

// onConsole runs a line on the serial console.
func (g *execGuest) onConsole(t *testing.T, text string) string {
	t.Helper()
	c := g.terminal(t, g.vm.ID)
	defer c.close()
	c.runs = g.lines
	g.lines++
	return c.run(t, "%s", text)
}
