//go:build system

package guest_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/vm"
)

// workingGuest is a guest with the programs that the tests run, and two accounts.
func workingGuest(t *testing.T) bootOptions {
	t.Helper()
	o := busyboxGuest(t, nil)
	tree := busyboxTree(t, append(slices.Clone(applets), "bin/stty", "bin/tty", "bin/id", "bin/true", "bin/grep", "bin/head", "bin/vi", "bin/kill", "bin/pwd", "bin/env", "bin/readlink", "bin/reset", "sbin/init"), map[string]string{
		"etc/inittab": inittab, "etc/init.d/rcS": rcS,
		"etc/passwd": "root:x:0:0:root:/:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\nwheel:x:10:app\n",
	})
	formatDisk(t, o.base, tree, 16)
	return o
}

// connectWhenReady returns a session with a guest that has booted.
func (m *machine) connectWhenReady() vm.Session {
	m.t.Helper()
	session, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	return session
}

func TestProcessesInAGuest(t *testing.T) {
	m := startMachine(t, workingGuest(t))
	g := m.connectWhenReady()
	t.Run("environment", func(t *testing.T) { testEnvironment(t, g) })
	t.Run("terminal", func(t *testing.T) { testTerminal(t, g) })
	t.Run("ends", func(t *testing.T) { testEnds(t, g) })
	t.Run("many at once", func(t *testing.T) { testManyAtOnce(t, g) })
	t.Run("nothing leaks", func(t *testing.T) { testNothingLeaks(t, g) })

	spec := process.Spec{Shell: "echo before; read x; echo after $x; exit 6", Stdin: true}
	stream, err := g.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Next()
	if err != nil || string(first.Data) != "before\n" {
		t.Fatalf("%q, %v", first.Data, err)
	}
	at := first.Offset
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Next()
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	_ = stream.Close()
	m.measureExec()

	g = m.connectWhenReady()
	id := stream.Process().ID
	if err := g.WriteStdin(t.Context(), id, []byte("all\n"), true); err != nil {
		t.Fatal(err)
	}
	stream, err = g.Attach(t.Context(), id, at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if c, err := collect(stream, at); err != nil || c.stdout != "after all\n" || c.exit.Code != 6 {
		t.Errorf("in the next session: %+v, %v", c, err)
	}
}

func testEnvironment(t *testing.T, g process.Guest) {
	c := run1(t, g, process.Spec{Shell: "pwd; id -un; id -G; echo $HOME $USER $SHELL $PATH", User: "app"})
	want := "/tmp\napp\n1000 10\n/tmp app /bin/sh /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
	if c.stdout != want || c.stderr != "" || c.exit.Code != 0 {
		t.Errorf("got %q, %q, %+v, want %q", c.stdout, c.stderr, c.exit, want)
	}
	for argv, want := range map[string]process.Exit{
		"true":          {Code: 0},
		"no-such-thing": {Code: 127},
		"/etc/passwd":   {Code: 126},
	} {
		// mke2fs keeps the modes of the tree, in which all files are executable.
		if argv == "/etc/passwd" {
			run1(t, g, process.Spec{Shell: "echo x >/tmp/plain"})
			argv = "/tmp/plain"
		}
		if c := run1(t, g, process.Spec{Argv: []string{argv}}); c.exit.Code != want.Code || (want.Code != 0) != (c.stderr != "") {
			t.Errorf("%s: %+v, %+v", argv, c, c.exit)
		}
	}
	// The agent resets the score just after the start.
	if c := run1(t, g, process.Spec{Shell: "sleep 0.2; cat /proc/self/oom_score_adj; for p in /proc/[0-9]*; do [ $(cat $p/comm) = hatch-agent ] && cat $p/oom_score_adj; done"}); c.stdout != "0\n-900\n" {
		t.Errorf("a process has the out-of-memory score of the agent: %q", c.stdout)
	}
	if c := run1(t, g, process.Spec{Argv: []string{"grep", "SigIgn", "/proc/self/status"}}); c.stdout != "SigIgn:\t0000000000000000\n" {
		t.Errorf("a process ignores signals: %q", c.stdout)
	}
}

// testTerminal runs vi, in an image without /dev/pts.
func testTerminal(t *testing.T, g process.Guest) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := g.Exec(ctx, process.Spec{Argv: []string{"vi", "/tmp/text"}, TTY: &process.Size{Rows: 10, Cols: 40}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	seen, at := "", int64(0)
	until := func(want string) {
		t.Helper()
		for !strings.Contains(seen, want) {
			chunk, err := stream.Next()
			if err != nil || chunk.Exit != nil {
				t.Fatalf("%q, then %+v, %v; want %q", seen, chunk.Exit, err, want)
			}
			seen += string(chunk.Data)
			at = chunk.Offset
		}
		seen = ""
	}
	typed := func(keys string) {
		t.Helper()
		if _, err := stream.Write([]byte(keys)); err != nil {
			t.Fatal(err)
		}
	}
	until("\x1b[10;1H") // the last of ten lines
	if err := stream.Resize(process.Size{Rows: 20, Cols: 60}); err != nil {
		t.Fatal(err)
	}
	typed("i")
	until("\x1b[20;1H")
	typed("hello")
	until("hello")
	typed("\x1b")
	until("- /tmp/text")
	typed(":wq\r")
	c, err := collect(stream, at)
	if c.exit == nil || c.exit.Code != 0 {
		t.Errorf("vi ended with %+v, %v", c.exit, err)
	}
	if c := run1(t, g, process.Spec{Argv: []string{"cat", "/tmp/text"}}); c.stdout != "hello\n" {
		t.Errorf("it wrote %q", c.stdout)
	}
}

func testEnds(t *testing.T, g process.Guest) {
	c := run1(t, g, process.Spec{Shell: "sleep 1000 & sleep 1000", Timeout: 500 * time.Millisecond})
	if !c.exit.TimedOut || c.exit.Code != 137 {
		t.Errorf("after its timeout: %+v", c.exit)
	}
	p, err := g.StartProcess(t.Context(), process.Spec{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SignalProcess(t.Context(), p.ID, "TERM"); err != nil {
		t.Fatal(err)
	}
	stream, err := g.Attach(t.Context(), p.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if c, err := collect(stream, 0); err != nil || c.exit.Code != 143 || c.exit.Signal != "SIGTERM" {
		t.Errorf("after a signal: %+v, %v", c.exit, err)
	}
}

func testManyAtOnce(t *testing.T, g process.Guest) {
	const several = 50
	results := make(chan error, several)
	began := time.Now()
	for i := range several {
		go func() {
			stream, err := g.Exec(context.Background(), process.Spec{Shell: fmt.Sprintf("echo %d", i)})
			if err != nil {
				results <- err
				return
			}
			defer func() { _ = stream.Close() }()
			c, err := collect(stream, 0)
			if err == nil && c.stdout != fmt.Sprintf("%d\n", i) {
				err = fmt.Errorf("%d gave %q", i, c.stdout)
			}
			results <- err
		}()
	}
	for range several {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d execs at once: %v", several, time.Since(began).Round(time.Millisecond))
}

// testNothingLeaks compares the agent's descriptors and threads before and after.
func testNothingLeaks(t *testing.T, g process.Guest) {
	const count = `for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = hatch-agent ] && echo $(ls $p/fd | grep -c .) $(ls $p/task | grep -c .); done`
	var files, threads, filesLater, threadsLater int
	read := func(files, threads *int) {
		t.Helper()
		text := run1(t, g, process.Spec{Shell: count}).stdout
		if _, err := fmt.Sscan(text, files, threads); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	}
	read(&files, &threads)
	began := time.Now()
	const times = 300 // the tests of the whole product do 1,000
	for range times {
		if c := run1(t, g, process.Spec{Argv: []string{"true"}}); c.exit.Code != 0 {
			t.Fatalf("%+v", c.exit)
		}
	}
	t.Logf("%d execs in a row: %v", times, time.Since(began).Round(time.Millisecond))
	read(&filesLater, &threadsLater)
	t.Logf("the agent had %d files and %d threads, and has %d and %d", files, threads, filesLater, threadsLater)
	if filesLater > files || threadsLater > threads+4 {
		t.Error("files or threads leak")
	}
}

// measureExec compares an exec with the shortest request.
func (m *machine) measureExec() {
	m.t.Helper()
	conn, err := m.dial(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := wire.Connect(m.t.Context(), conn)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	m.measure("hello", func() error {
		_, err := c.Hello(m.t.Context())
		return err
	})
	exec := func(spec wire.ProcessSpec) func() error {
		return func() error {
			spec.ID = id.New("exec_")
			_, stream, err := c.Exec(m.t.Context(), spec)
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			for {
				chunk, err := stream.Next()
				if err != nil || chunk.Exit != nil {
					return err
				}
			}
		}
	}
	m.measure("exec of nothing", exec(wire.ProcessSpec{Argv: []string{"/bin/no-such-thing"}}))
	m.measure("exec true", exec(wire.ProcessSpec{Argv: []string{"/bin/true"}}))
	began := time.Now()
	const times = 60
	if err := exec(wire.ProcessSpec{Shell: fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done", times)})(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("of this, fork, exec and wait in the guest's shell take: %v", (time.Since(began) / times).Round(time.Microsecond))
}

func (m *machine) measure(what string, do func() error) {
	m.t.Helper()
	const times = 60
	var took []time.Duration
	for range times {
		began := time.Now()
		if err := do(); err != nil {
			m.t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	m.t.Logf("%s: p50 %v, p99 %v", what, took[times/2].Round(time.Microsecond), took[times*99/100].Round(time.Microsecond))
}

func TestAgentThatIsStoppedOrKilled(t *testing.T) {
	m := startMachine(t, workingGuest(t))
	g := m.connectWhenReady()
	stream, err := g.Exec(t.Context(), process.Spec{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	const stop = `for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = hatch-agent ] && kill -STOP ${p#/proc/}; done`
	if _, err := g.StartProcess(t.Context(), process.Spec{Shell: stop}); err != nil && !errs.HasCode(err, "agent_unavailable") {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = stream.Next()
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	t.Logf("stopped to noticed: %v", time.Since(began).Round(time.Millisecond))
	_, err = g.Exec(t.Context(), process.Spec{Argv: []string{"true"}})
	requireError(t, err, errs.Unavailable, "agent_unavailable")
	if took := time.Since(began); took > 45*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

// entrypointGuest has no init, but an entrypoint.
func entrypointGuest(t *testing.T, line string) bootOptions {
	t.Helper()
	dir := t.TempDir()
	what := fmt.Sprintf(`{"argv":["/bin/sh","-c",%q],"env":["A=of the image"],"cwd":"/tmp","user":"1000"}`, line)
	o := bootOptions{
		base: filepath.Join(dir, "base"), disk: filepath.Join(dir, "disk"), overlay: true,
		cmdline: "hatch.mode=overlay hatch.rootfs=ext4 hatch.hostname=web-1 hatch.entrypoint=" + base64.RawURLEncoding.EncodeToString([]byte(what)),
	}
	formatDisk(t, o.base, busyboxTree(t, append(slices.Clone(applets), "bin/id", "bin/true"), nil), 16)
	formatDisk(t, o.disk, "", 32)
	return o
}

func TestEntrypointIsSupervised(t *testing.T) {
	m := startMachine(t, entrypointGuest(t, `trap 'echo is told; sleep 1; echo is done; exit 0' TERM; echo "is $(id -u) $A in $PWD"; while :; do sleep 0.1; done`))
	g := m.connectWhenReady()
	m.requireConsole(30*time.Second, "is 1000 of the image in /tmp")
	if c := run1(t, g, process.Spec{Argv: []string{"true"}}); c.exit.Code != 0 {
		t.Errorf("a process beside the entrypoint: %+v", c.exit)
	}
	powerOff(t, g)
	m.awaitExit(30 * time.Second)
	m.requireConsole(0, "is told", "is done")
	if strings.Contains(m.console.String(), "Kernel panic") {
		t.Error("the kernel panicked")
	}
}

func TestEndOfTheEntrypointPowersOff(t *testing.T) {
	m := startMachine(t, entrypointGuest(t, "echo is short; exit 4"))
	m.awaitExit(bootTimeout)
	m.requireConsole(0, "is short", "the entrypoint has ended", "code=4")
	if strings.Contains(m.console.String(), "Kernel panic") {
		t.Error("the kernel panicked")
	}
}
