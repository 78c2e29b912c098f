package envd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/agent/files"
	"github.com/hatchvm/hatch/internal/agent/proc"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/envd"
	"github.com/hatchvm/hatch/internal/vm"
)

// agent is the agent's part for processes and files, in the machine that runs the test.
type agent struct {
	wire.ProcessHandler
	wire.FileHandler
}

func (agent) Hello() wire.Hello {
	return wire.Hello{Agent: "test", Versions: []int{wire.Version}, BootID: "boot"}
}
func (agent) Status() wire.Status                                         { return wire.Status{} }
func (agent) Shutdown(context.Context, wire.ShutdownArgs) (func(), error) { return func() {}, nil }
func (agent) Watch(ctx context.Context, report func(wire.Status) error) error {
	if err := report(wire.Status{}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// processesOf and filesOf open the one guest of a session.
type (
	processesOf struct{ vm.Session }
	filesOf     struct{ vm.Session }
)

func (s processesOf) Open(context.Context, access.Scope, string, process.Mode) (process.Guest, func(), error) {
	return s.Session, func() {}, nil
}

func (s filesOf) Open(context.Context, access.Scope, string, file.Mode) (file.Guest, func(), error) {
	return s.Session, func() {}, nil
}

// newAgentWorld has a sandbox whose guest is this machine, behind hatch-agent's code.
func newAgentWorld(t *testing.T) *world {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	table := proc.New(log)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	conns := make(chan net.Conn)
	go func() {
		defer close(ended)
		for {
			select {
			case conn := <-conns:
				if server, err := wire.Accept(conn); err == nil {
					_ = server.Run(ctx, agent{table, files.New("/")})
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	session := guest.New(log, "").Connect(myVM, func(ctx context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case conns <- there:
			return here, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, func(*vm.GuestReport) {})
	t.Cleanup(func() {
		_ = session.Close()
		stop()
		<-ended
		_ = table.Close()
	})
	w := &world{root: t.TempDir(), sandbox: envd.Sandbox{ID: "iabc", Template: "base", VMID: myVM, Owner: "acc_me", Token: token, DefaultUser: me.Username}}
	w.serve(t, processesOf{session}, filesOf{session})
	return w
}

// line is the request of a line for a shell that begins no login, which is quicker.
func line(text, more string) string {
	quoted, _ := json.Marshal(text)
	return `{"process":{"cmd":"/bin/sh","args":["-c",` + string(quoted) + `]}` + more + `}`
}

func TestProcessesOfTheAgent(t *testing.T) {
	w := newAgentWorld(t)
	for name, c := range map[string]struct{ request, stdout, stderr, pty, end string }{
		"output":       {line("echo a; echo b >&2; exit 3", ""), "a\n", "b\n", "", `{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}{}`},
		"a signal":     {line("kill -9 $$", ""), "", "", "", `{"exitCode":-1,"status":"signal: killed","error":"signal: killed"}{}`},
		"no program":   {`{"process":{"cmd":"/no/program"}}`, "", "/no/program: no such file or directory\n", "", `{"exitCode":127,"exited":true,"status":"exit status 127","error":"exit status 127"}{}`},
		"no stdin":     {line("cat", `,"stdin":false`), "", "", "", `{"exited":true,"status":"exit status 0"}{}`},
		"a terminal":   {line("stty size", `,"pty":{"size":{"cols":132,"rows":50}}`), "", "", "50 132\r\n", `{"exited":true,"status":"exit status 0"}{}`},
		"a variable":   {line("echo $E2B_SANDBOX_ID", ""), "iabc\n", "", "", `{"exited":true,"status":"exit status 0"}{}`},
		"much at once": {line("head -c 300000 /dev/zero | tr '\\0' x", ""), strings.Repeat("x", 300_000), "", "", `{"exited":true,"status":"exit status 0"}{}`},
	} {
		e := w.stream(t, processes+"Start", c.request)
		e.pid()
		if stdout, stderr, pty, end := e.rest(); stdout != c.stdout || stderr != c.stderr || pty != c.pty || end != c.end {
			t.Errorf("%s: %.50q, %q, %q, %s", name, stdout, stderr, pty, end)
		}
	}
	w.stream(t, processes+"Start", `{"process":{"cmd":"true","cwd":"/no/dir"}}`).want(`{"error":{"code":"invalid_argument","message":"cwd '/no/dir' does not exist"}}`)

	started := w.stream(t, processes+"Start", line("cat; exit 5", `,"tag":"t"`))
	pid := started.pid()
	started.leave()
	w.restart() // the agent has the pid and the tag
	e := w.stream(t, processes+"Connect", `{"process":{"tag":"t"}}`)
	if again := e.pid(); again != pid {
		t.Errorf("the pid is %s, and was %s", again, pid)
	}
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"stdin":"aGkK"}}`, pid)).want(t, 200, "{}")
	for range 2 {
		w.call(t, processes+"CloseStdin", fmt.Sprintf(`{"process":{"pid":%s}}`, pid)).want(t, 200, "{}")
	}
	if stdout, _, _, end := e.rest(); stdout != "hi\n" || !strings.HasPrefix(end, `{"exitCode":5`) {
		t.Errorf("after a restart: %q, %s", stdout, end)
	}
	sleeper := w.stream(t, processes+"Start", line("sleep 100", ""))
	pid = sleeper.pid()
	kill := fmt.Sprintf(`{"process":{"pid":%s},"signal":"SIGNAL_SIGKILL"}`, pid)
	w.call(t, processes+"SendSignal", kill).want(t, 200, "{}")
	w.call(t, processes+"SendSignal", kill).wantError(t, 404, "not_found", "not found") // at once
	w.call(t, processes+"List", "{}").want(t, 200, `{"processes":[]}`)
}

// TestFilesOfTheAgent writes files as the SDKs do, while they are watched: the agent's
// partial files must not be seen.
func TestFilesOfTheAgent(t *testing.T) {
	w := newAgentWorld(t)
	created := w.call(t, filesystem+"CreateWatcher", fmt.Sprintf(`{"path":%q}`, w.root))
	var watcher struct{ WatcherID string }
	if err := json.Unmarshal([]byte(created.body), &watcher); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(w.root, "f")
	for _, text := range []string{"one", ""} {
		w.send(t, http.MethodPost, "/files?path="+at, form("x", text), "Content-Type", multipart).want(t, 200, fmt.Sprintf(`[{"name":"f","path":%q,"type":"file"}]`, at))
		if r := w.send(t, http.MethodGet, "/files?path="+at, ""); r.body != text || r.ContentLength != int64(len(text)) {
			t.Errorf("%q was read as %q", text, r.body)
		}
		var got struct{ Events []change }
		r := w.call(t, filesystem+"GetWatcherEvents", fmt.Sprintf(`{"watcherId":%q}`, watcher.WatcherID))
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || !slices.Equal(got.Events, []change{{Name: "f", Type: "EVENT_TYPE_CREATE"}, {Name: "f", Type: "EVENT_TYPE_WRITE"}}) {
			t.Errorf("the changes are %v", got.Events)
		}
	}
	if r := w.send(t, http.MethodGet, "/files?path=/proc/self/status", ""); r.StatusCode != 200 || !strings.Contains(r.body, "Name:") {
		t.Errorf("a file of the kernel: status %d, %.50q", r.StatusCode, r.body)
	}
	if err := os.Symlink("f", filepath.Join(w.root, "l")); err != nil {
		t.Fatal(err)
	}
	if r := w.call(t, filesystem+"Stat", fmt.Sprintf(`{"path":%q}`, filepath.Join(w.root, "l"))); !strings.Contains(r.body, `"type":"FILE_TYPE_FILE"`) || !strings.Contains(r.body, fmt.Sprintf(`"owner":%q`, w.sandbox.DefaultUser)) {
		t.Errorf("a link is %s", r.body)
	}
	w.call(t, filesystem+"MakeDir", fmt.Sprintf(`{"path":"%s/a/b"}`, w.root), "User-Agent", "connect-python").
		want(t, 200, fmt.Sprintf(`{"entry":{"name":"b","type":"FILE_TYPE_DIRECTORY","path":"%s/a/b"}}`, w.root))
	w.call(t, filesystem+"Move", fmt.Sprintf(`{"source":%q,"destination":"%s/c/d/f"}`, at, w.root), "User-Agent", "connect-python").
		want(t, 200, fmt.Sprintf(`{"entry":{"name":"f","type":"FILE_TYPE_FILE","path":"%s/c/d/f"}}`, w.root))
	w.sandbox.DefaultUser = "no-such-user"
	w.send(t, http.MethodPost, "/files?path="+at, form("x", "y"), "Content-Type", multipart).
		want(t, 401, `{"code":401,"message":"invalid username: 'no-such-user': the sandbox's image has no such user"}`)
	got, _ := w.stream(t, processes+"Start", line("true", "")).next()
	if !strings.Contains(got, "invalid username: 'no-such-user'") {
		t.Errorf("a process of an unknown user: %s", got)
	}
}
