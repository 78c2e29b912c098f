package boot

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// superviseVariable makes the test program the reaper of its descendants. It runs the
// shell line in the variable as its entrypoint.
const superviseVariable = "HATCH_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if line := os.Getenv(superviseVariable); line != "" {
		fmt.Fprintln(os.Stdout, "ended:", superviseLine(line))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var errPoweredOff = errors.New("powered off")

func superviseLine(line string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	s := newSupervisor(slog.New(slog.NewTextHandler(os.Stdout, nil)))
	s.startAgent = func() (int, error) {
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "echo agent; read forever"}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
		if err != nil {
			return 0, err
		}
		return p.Pid, nil
	}
	s.powerOff = func() error { return errPoweredOff }
	e := &entrypoint{Argv: []string{"sh", "-c", "echo entrypoint $$; " + line}, Env: []string{"A=of the image"}, Cwd: "/", User: strconv.Itoa(os.Geteuid())}
	s.startEntrypoint = e.start
	agent, err := s.startAgent()
	if err != nil {
		return err
	}
	s.agent = agent
	return s.run()
}

// supervised is a supervisor in a process of its own.
type supervised struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer // the agents end when it is closed
	out   *bufio.Scanner
	main  atomic.Int64 // pid of the entrypoint's group

	agents int // starts of the agent
}

func superviseHere(t *testing.T, line string) *supervised {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), superviseVariable+"="+line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &supervised{t: t, cmd: cmd, stdin: stdin, out: bufio.NewScanner(out)}
	stop := time.AfterFunc(30*time.Second, s.end)
	t.Cleanup(func() {
		stop.Stop()
		s.end()
		_ = cmd.Wait()
	})
	pid, err := strconv.Atoi(strings.TrimPrefix(s.until("entrypoint "), "entrypoint "))
	if err != nil {
		t.Fatal(err)
	}
	s.main.Store(int64(pid))
	return s
}

// end kills the supervisor and its children.
func (s *supervised) end() {
	_ = s.cmd.Process.Kill()
	_ = s.stdin.Close()
	if pid := int(s.main.Load()); pid > 0 {
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}

// until reads lines up to the first that contains text, and returns it.
func (s *supervised) until(text string) string {
	s.t.Helper()
	var seen []string
	for s.out.Scan() {
		seen = append(seen, s.out.Text())
		if s.out.Text() == "agent" {
			s.agents++
		}
		if strings.Contains(s.out.Text(), text) {
			return s.out.Text()
		}
	}
	s.t.Fatalf("it ended with %q, want %q", seen, text)
	return ""
}

func TestEndOfTheEntrypointPowersOff(t *testing.T) {
	s := superviseHere(t, `echo "$A in $PWD"; exit 3`)
	s.until("of the image in /")
	s.until("the entrypoint has ended")
	if line := s.until("ended:"); line != "ended: "+errPoweredOff.Error() {
		t.Errorf("it %s", line)
	}
}

func TestEntrypointThatCannotRunIsAnError(t *testing.T) {
	e := &entrypoint{Argv: []string{"no-such-command-here"}, User: strconv.Itoa(os.Geteuid())}
	if _, err := e.start(); err == nil || !strings.Contains(err.Error(), "command not found") {
		t.Errorf("got %v", err)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	s := superviseHere(t, `for s in TERM INT HUP USR1 USR2; do trap "echo got $s" $s; done; echo ready; while :; do sleep 0.05; done`)
	s.until("ready")
	for name, number := range map[string]syscall.Signal{
		"TERM": unix.SIGTERM, "INT": unix.SIGINT, "HUP": unix.SIGHUP, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
	} {
		if err := s.cmd.Process.Signal(number); err != nil {
			t.Fatal(err)
		}
		s.until("got " + name)
	}
}

// TestAnnouncedEndDoesNotPowerOff announces a shutdown before the entrypoint ends:
// the agent that announced it powers off.
func TestAnnouncedEndDoesNotPowerOff(t *testing.T) {
	s := superviseHere(t, `trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	s.until("ready")
	if err := s.cmd.Process.Signal(unix.SIGPWR); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.until("the entrypoint has ended")
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for s.out.Scan() {
			if line := s.out.Text(); line != "agent" {
				lines <- line
			}
		}
	}()
	select {
	case line := <-lines:
		t.Errorf("the supervisor printed %q", line)
	case <-time.After(3 * powerOffDelay):
	}
	s.end()
	for range lines {
	}
}

func TestAgentIsStartedAgainAndOrphansAreReaped(t *testing.T) {
	s := superviseHere(t, `(sleep 0.01 & echo orphan $!); for p in /proc/[0-9]*; do [ "$(cut -d" " -f4 $p/stat)" = $PPID ] && [ ${p#/proc/} != $$ ] && [ "$(cat $p/comm)" = sh ] && kill -KILL ${p#/proc/}; done; sleep 1000`)
	orphan := strings.TrimPrefix(s.until("orphan "), "orphan ")
	for s.agents < 2 {
		s.until("agent")
	}
	if _, err := os.Stat("/proc/" + orphan); err == nil {
		t.Errorf("the orphan %s was not reaped", orphan)
	}
}

func TestEntrypointOfTheKernelCommandLine(t *testing.T) {
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"argv":["/app","-x"],"env":["A=b=c"],"cwd":"/srv","user":"app:web"}`))
	for _, padding := range []string{"", "=", "=="} {
		p, err := parseParams("hatch.mode=copy hatch.entrypoint=" + text + padding)
		if err != nil {
			t.Fatal(err)
		}
		if e := p.entrypoint; fmt.Sprint(*e) != "{[/app -x] [A=b=c] /srv app:web}" {
			t.Errorf("got %+v", e)
		}
	}
	if p, err := parseParams("hatch.mode=copy"); err != nil || p.entrypoint != nil {
		t.Errorf("without an entrypoint: %+v, %v", p, err)
	}
	for _, bad := range []string{"%", encode([]byte("[]")), encode([]byte(`{"argv":[]}`)), encode([]byte(`{}`))} {
		if _, err := parseParams("hatch.mode=copy hatch.entrypoint=" + bad); err == nil || !strings.Contains(err.Error(), "hatch.entrypoint") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzEntrypoint(f *testing.F) {
	f.Add("eyJhcmd2IjpbImEiXX0")
	f.Add("====")
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := parseEntrypoint(text); err == nil && len(e.Argv) == 0 {
			t.Error("an entrypoint without argv")
		}
	})
}
