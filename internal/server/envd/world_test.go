package envd_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/envd"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	me    = "acc_me"
	myVM  = "vm_mine"
	token = "ea_testtoken"
)

// machines has one VM.
type machines struct {
	asleep atomic.Bool
	wakes  atomic.Int32
	down   atomic.Pointer[errs.Error]
}

func (m *machines) Ready(_ context.Context, scope access.Scope, id string, wake bool) error {
	if err := m.down.Load(); err != nil {
		return err
	}
	switch {
	case id != myVM || !scope.Sees(me):
		return errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	case m.asleep.Load() && !wake:
		return errs.New(errs.Conflict, "vm_not_running", "the VM sleeps")
	case m.asleep.Swap(false):
		m.wakes.Add(1)
	}
	return nil
}

func (m *machines) Metrics(context.Context, access.Scope, string) (vm.Metrics, error) {
	return vm.Metrics{
		VM: vm.VM{Spec: machine.Spec{VCPUs: 2}}, CollectedAt: time.Unix(1800000000, 0), CPUPercent: 50,
		Guest: &vm.GuestUsage{MemTotal: 1000, MemUsed: 400, DiskTotal: 5000, DiskUsed: 600},
	}, nil
}

// noKeys is for requests without an Idempotency-Key.
type noKeys struct{}

func (noKeys) Remember(context.Context, string) error { return nil }
func (noKeys) Forget(context.Context, string) error   { return nil }

// world is a sandbox behind a server.
type world struct {
	*httptest.Server
	machines machines
	sandbox  envd.Sandbox
	table    *guest.ProcessTable
	root     string // directory of the guest's files
	door     *envd.Envd
	restart  func() // replaces the door, as a new hatchd does
}

const passwd = "root:x:0:0:root:/root:/bin/bash\nbroken line\nuser:x:1000:1000::/home/user:/bin/bash\nodd:x:1:1::relative:/bin/sh\n"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		root: t.TempDir(), table: guest.NewProcessTable(),
		sandbox: envd.Sandbox{ID: "iabc", Template: "base", VMID: myVM, Owner: me, Token: token, DefaultUser: "user", Env: map[string]string{"A": "1"}},
	}
	for _, dir := range []string{"etc", "root", "tmp", "home/user"} {
		if err := os.MkdirAll(filepath.Join(w.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.put(t, "etc/passwd", passwd)
	files, err := guest.OpenFiles(w.root)
	if err != nil {
		t.Fatal(err)
	}
	processes := &guest.VM[process.Guest, process.Mode]{ID: myVM, OwnerID: me, Guest: w.table}
	inside := &guest.VM[file.Guest, file.Mode]{ID: myVM, OwnerID: me, Guest: files}
	t.Cleanup(func() {
		w.table.Close()
		if err := errors.Join(files.Close(), processes.Check(), inside.Check()); err != nil {
			t.Error(err)
		}
	})
	w.serve(t, processes, inside)
	return w
}

// serve serves the sandbox until the test ends.
func (w *world) serve(t *testing.T, processes process.Guests, files file.Guests) {
	w.restart = func() {
		if w.door != nil {
			w.door.Close()
		}
		w.door = envd.New(envd.Config{
			Processes: process.New(processes, noKeys{}), Files: file.New(files), Machines: &w.machines, Log: slog.New(slog.DiscardHandler),
		})
	}
	w.restart()
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.door.ServeHTTP(rw, r, w.sandbox) }))
	t.Cleanup(func() {
		w.Close()
		w.door.Close()
	})
}

// put writes a file of the guest.
func (w *world) put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.root, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reply is an answer that was read to its end.
type reply struct {
	*http.Response
	body string
}

// send sends a request with the token.
func (w *world) send(t *testing.T, method, target, body string, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.URL+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Access-Token", token)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := w.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return reply{res, string(text)}
}

// call makes a unary call as the Python SDK does.
func (w *world) call(t *testing.T, method, body string, headers ...string) reply {
	t.Helper()
	return w.send(t, http.MethodPost, method, body, append([]string{
		"Content-Type", "application/json", "Connect-Protocol-Version", "1", "Content-Encoding", "identity", "Connect-Timeout-Ms", "60000",
	}, headers...)...)
}

// want requires a status and a body.
func (r reply) want(t *testing.T, status int, body string) {
	t.Helper()
	if r.StatusCode != status || r.body != body {
		t.Errorf("%s: status %d, %s; want %d, %s", r.Request.URL.Path, r.StatusCode, r.body, status, body)
	}
}

// wantError requires the error of a call.
func (r reply) wantError(t *testing.T, status int, code, message string) {
	t.Helper()
	var got struct{ Code, Message string }
	err := json.Unmarshal([]byte(r.body), &got)
	if err != nil || r.StatusCode != status || got.Code != code || !strings.Contains(got.Message, message) {
		t.Errorf("%s: status %d, %s; want %d, %s, %q", r.Request.URL.Path, r.StatusCode, r.body, status, code, message)
	}
}

// events is an open stream.
type events struct {
	t    *testing.T
	body io.ReadCloser
	stop context.CancelFunc
}

func frame(text string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text)))) + text
}

// stream opens a stream as the Python SDK does: with a body in chunks.
func (w *world) stream(t *testing.T, method, body string, headers ...string) *events {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+method, io.MultiReader(strings.NewReader(frame(body))))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	r.Header.Set("X-Access-Token", token)
	r.Header.Set("Content-Type", "application/connect+json")
	res, err := w.Client().Do(r) //nolint:bodyclose // leave closes it
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || got != "application/connect+json" {
		t.Fatalf("%s: status %d, %s", method, res.StatusCode, got)
	}
	e := &events{t, res.Body, stop}
	t.Cleanup(e.leave)
	return e
}

// leave cuts the stream.
func (e *events) leave() {
	e.stop()
	_ = e.body.Close()
}

// next returns the next message; end says that it is the last.
func (e *events) next() (text string, end bool) {
	e.t.Helper()
	var prefix [5]byte
	if _, err := io.ReadFull(e.body, prefix[:]); err != nil {
		e.t.Fatalf("the stream was cut: %v", err)
	}
	payload := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
	if _, err := io.ReadFull(e.body, payload); err != nil {
		e.t.Fatal(err)
	}
	return string(payload), prefix[0] == 2
}

// want requires the next messages.
func (e *events) want(messages ...string) {
	e.t.Helper()
	for _, want := range messages {
		if got, _ := e.next(); got != want {
			e.t.Errorf("got %s, want %s", got, want)
		}
	}
}

// rest returns what a process writes up to its end, and its end.
func (e *events) rest() (stdout, stderr, pty, end string) {
	e.t.Helper()
	for {
		text, last := e.next()
		var got struct {
			Event struct {
				Data struct{ Stdout, Stderr, PTY []byte }
				End  json.RawMessage
			}
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			e.t.Fatal(err)
		}
		if last {
			return stdout, stderr, pty, end + text
		}
		stdout, stderr, pty = stdout+string(got.Event.Data.Stdout), stderr+string(got.Event.Data.Stderr), pty+string(got.Event.Data.PTY)
		end += string(got.Event.End)
	}
}

// pid reads the first event of a process.
func (e *events) pid() (pid json.Number) {
	e.t.Helper()
	text, _ := e.next()
	var got struct {
		Event struct{ Start *struct{ PID json.Number } }
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Event.Start == nil {
		e.t.Fatalf("the first event is %s", text)
	}
	return got.Event.Start.PID
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// script is the request of a command as an SDK makes it.
func script(line, more string) string {
	var quoted bytes.Buffer
	_ = json.NewEncoder(&quoted).Encode(line)
	return `{"process":{"cmd":"/bin/bash","args":["-l","-c",` + strings.TrimSpace(quoted.String()) + `],"envs":{}}` + more + `}`
}
