package httpapi_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/process"
)

// firstExec is the path of the first process that the pretended guest starts.
const firstExec = "/vms/" + knownVM + "/execs/exec_fake00000001"

// stoppedVM is a VM of goodAcc's that does not run.
const stoppedVM = "vm_stopped00000"

// sleepingVM is a VM of goodAcc's that can be woken. Its guest is the known VM's.
const sleepingVM = "vm_asleep000000"

// requireNoUse waits until each use has been released, and only once.
func requireNoUse(t testing.TB, uses *guest.Uses) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); uses.InUse() > 0 && time.Now().Before(deadline); {
		<-tick.C
	}
	if err := uses.Check(); err != nil {
		t.Error(err)
	}
}

// oneGuest is a host on which the known VM runs.
type oneGuest struct {
	guest process.Guest
	uses  *guest.Uses
}

// Open implements process.Guests.
func (o oneGuest) Open(_ context.Context, scope access.Scope, vmID string, mode process.Mode) (process.Guest, func(), error) {
	switch {
	case scope == access.Owner(goodAcc) && (vmID == knownVM || vmID == sleepingVM && mode == process.Wake):
		return o.guest, o.uses.Begin(), nil
	case scope == access.Owner(goodAcc) && vmID == sleepingVM:
		return nil, nil, errs.New(errs.Conflict, "vm_not_running", "cannot look inside VM %s: it is snapshotted", vmID).WithHint("wake it first")
	case scope == access.Owner(goodAcc) && vmID == stoppedVM:
		return nil, nil, errs.New(errs.Conflict, "vm_not_running", "cannot work inside VM %s: it is stopped", vmID).WithHint("start it first")
	}
	return nil, nil, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", vmID)
}

func (s *server) exec(t testing.TB, body string) api.ExecResult {
	t.Helper()
	reply := s.call(t, "POST", "/vms/"+knownVM+"/exec", body)
	wantStatus(t, reply, 200)
	return decode[api.ExecResult](t, reply)
}

func TestRunExec(t *testing.T) {
	s := newServer(t)
	for body, want := range map[string]api.ExecResult{
		`{"command":"echo a; echo b >&2; exit 3"}`:                                              {Stdout: "a\n", Stderr: "b\n", ExitCode: 3},
		`{"command":["echo","a;  b"]}`:                                                          {Stdout: "a;  b\n"},
		`{"command":["nothing"]}`:                                                               {Stderr: "nothing: not found\n", ExitCode: 127},
		`{"command":"cat","stdin":"a\u0000ü"}`:                                                  {Stdout: "a\x00ü"},
		`{"command":"cat","stdin":"AP8=","stdin_encoding":"base64"}`:                            {Stdout: "\x00\uFFFD"},
		`{"command":"cat","stdin":"/w==","stdin_encoding":"base64","output_encoding":"base64"}`: {Stdout: "/w=="},
		`{"command":"cat","stdin":"aü€","max_output_bytes":2}`:                                  {Stdout: "a", StdoutTruncated: true},
		`{"command":"cat","stdin":"aü€","max_output_bytes":5}`:                                  {Stdout: "aü", StdoutTruncated: true},
		`{"command":"cat","stdin":"aü€","max_output_bytes":6}`:                                  {Stdout: "aü€"},
		`{"command":"cat","stdin":"aü€","max_output_bytes":2,"output_encoding":"base64"}`:       {Stdout: "YcM=", StdoutTruncated: true},
		`{"command":"sleep 60","timeout_ms":10}`:                                                {ExitCode: 137, Signal: "SIGKILL", TimedOut: true},
		`{"command":"env; pwd; whoami","env":{"A":"1"},"cwd":"/srv","user":"daemon"}`:           {Stdout: "A=1\n/srv\ndaemon\n"},
		`{"command":"stty size","tty":{"rows":50,"cols":132}}`:                                  {Stdout: "50 132\r\n"},
	} {
		got := s.exec(t, body)
		if got.ID == "" || got.DurationMS < 0 {
			t.Errorf("%s: %+v", body, got)
		}
		got.ID, got.DurationMS = "", 0
		if got != want {
			t.Errorf("%s: %+v, want %+v", body, got, want)
		}
	}
}

func TestBadExecs(t *testing.T) {
	s := newServer(t)
	for body, want := range map[string]string{
		``:                                 "invalid_request",
		`{}`:                               "invalid_command",
		`{"command":""}`:                   "invalid_command",
		`{"command":[]}`:                   "invalid_command",
		`{"command":7}`:                    "invalid_command",
		`{"command":["a",7]}`:              "invalid_command",
		`{"command":null}`:                 "invalid_command",
		`{"command":{"argv":["a"]}}`:       "invalid_command",
		`{"command":"a\u0000"}`:            "invalid_command",
		`{"command":"a","comand":"b"}`:     "unknown_field",
		`{"command":"a","env":{"A=B":""}}`: "invalid_env",
		`{"command":"a","env":["A=B"]}`:    "invalid_env",
		`{"command":"a","cwd":"tmp"}`:      "invalid_cwd",
		`{"command":"a","user":"a b"}`:     "invalid_user",
		`{"command":"a","user":"nemo"}`:    "invalid_user", // says the guest
		`{"command":"a","stdin":"!","stdin_encoding":"base64"}`:                                            "invalid_stdin",
		`{"command":"a","stdin_encoding":"utf16"}`:                                                         "invalid_stdin_encoding",
		`{"command":"a","output_encoding":"hex"}`:                                                          "invalid_output_encoding",
		`{"command":"a","stdin_open":true}`:                                                                "invalid_stdin_open",
		`{"command":"a","timeout_ms":-1}`:                                                                  "invalid_timeout_ms",
		`{"command":"a","timeout_ms":2592000001}`:                                                          "invalid_timeout_ms",
		`{"command":"a","max_output_bytes":4194305}`:                                                       "invalid_max_output_bytes",
		`{"command":"a","tty":{"rows":0,"cols":80}}`:                                                       "invalid_tty",
		`{"command":"a","tty":{"rows":24}}`:                                                                "invalid_tty",
		`{"command":"a","tty":{"rows":24,"cols":65536}}`:                                                   "invalid_tty",
		`{"command":"a","background":true,"stdin":"` + strings.Repeat("x", process.MaxStartInput+1) + `"}`: "invalid_stdin",
	} {
		reply := s.call(t, "POST", "/vms/"+knownVM+"/exec", body)
		if reply.StatusCode != 400 || reply.problem(t).Code != want {
			t.Errorf("%.80s: status %d: %s", body, reply.StatusCode, reply.body)
		}
	}
}

func TestExecInAStoppedVM(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "POST", "/vms/"+stoppedVM+"/exec", `{"command":"true"}`)
	wantStatus(t, reply, 409)
	if p := reply.problem(t); p.Code != "vm_not_running" || p.Hint == "" {
		t.Errorf("%+v", p)
	}
	wantStatus(t, s.call(t, "GET", "/vms/"+stoppedVM+"/exec", ""), 409)
	s.processes.SetLost(true)
	reply = s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"true"}`)
	wantStatus(t, reply, 503)
	if p := reply.problem(t); p.Code != "agent_unavailable" || p.Hint == "" {
		t.Errorf("%+v", p)
	}
}

// TestRunExecEndsWithItsClient leaves while the command runs.
func TestRunExecEndsWithItsClient(t *testing.T) {
	s := newServer(t)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		resp, err := http.DefaultClient.Do(s.request(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"sleep 60"}`).WithContext(ctx))
		if err == nil {
			_ = resp.Body.Close()
		}
		ended <- err
	}()
	s.processes.AwaitRunning(1)
	leave()
	if err := <-ended; err == nil {
		t.Error("it was answered")
	}
	s.processes.AwaitRunning(0)
	if all := decode[[]api.Exec](t, s.call(t, "GET", "/vms/"+knownVM+"/execs", "")); len(all) != 0 {
		t.Errorf("left is %+v", all)
	}
}

func TestExecInTheBackground(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":["sh","-c","cat; exit 5"],"env":{"KEY":"secret"},"stdin":"one ","stdin_open":true,"background":true}`)
	wantStatus(t, reply, 201)
	path := reply.Header.Get("Location")
	if path != firstExec {
		t.Fatalf("Location is %s", path)
	}
	made := decode[api.Exec](t, reply)
	if made.State != api.ExecRunning || len(made.Command.Argv) != 3 || made.PID == 0 || strings.Contains(string(reply.body), "secret") {
		t.Errorf("made %s", reply.body)
	}
	wantStatus(t, s.call(t, "POST", path+"/stdin", `{"data":"dHdv","encoding":"base64","close":true}`), 200)
	if log := s.call(t, "GET", path+"/logs?follow=true", ""); string(log.body) != "one two" || !strings.HasPrefix(log.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("the log is %q", log.body)
	}
	now := decode[api.Exec](t, s.call(t, "GET", path, ""))
	if now.State != api.ExecExited || now.ExitCode == nil || *now.ExitCode != 5 || now.EndedAt == nil || now.OutputBytes != 7 {
		t.Errorf("now %+v", now)
	}
	for suffix, body := range map[string]string{"/signal": `{"signal":"TERM"}`, "/stdin": `{"data":"late"}`} {
		wantStatus(t, s.call(t, "POST", path+suffix, body), 409)
	}
	wantStatus(t, s.call(t, "DELETE", path, ""), 200)
	wantStatus(t, s.call(t, "GET", path+"/logs", ""), 404)

	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"sleep 60","background":true}`), 201)
	path = strings.Replace(firstExec, "1", "2", 1)
	wantStatus(t, s.call(t, "POST", path+"/resize", `{"rows":1,"cols":1}`), 409)
	wantStatus(t, s.call(t, "POST", path+"/signal", `{"signal":"NOPE"}`), 400)
	wantStatus(t, s.call(t, "POST", path+"/signal", `{"signal":"int"}`), 200)
	s.processes.AwaitRunning(0)
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"sleep 60","background":true}`), 201)
	wantStatus(t, s.call(t, "DELETE", strings.Replace(firstExec, "1", "3", 1), ""), 200)
	s.processes.AwaitRunning(0)
}

// TestExecLogIsWhole follows the log of a process that is lost on the way:
// half of it must not look like the whole.
func TestExecLogIsWhole(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"echo a; sleep 60","background":true}`), 201)
	resp, err := http.DefaultClient.Do(s.request(t, "GET", firstExec+"/logs?follow=true", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line := make([]byte, 2)
	if _, err := resp.Body.Read(line); err != nil || string(line) != "a\n" {
		t.Fatalf("%q, %v", line, err)
	}
	s.processes.SetLost(true)
	if _, err := resp.Body.Read(line); err == nil || err.Error() == "EOF" {
		t.Errorf("it ends with %v", err)
	}
	s.processes.SetLost(false)
}

func TestCommandOnTheWire(t *testing.T) {
	s := newServer(t)
	if doc := string(s.call(t, "GET", "/openapi.json", "").body); !strings.Contains(doc, `"oneOf":[{"type":"string"},{"items":{"type":"string"},"type":"array"}]`) {
		t.Error("the document does not say what a command is")
	}
	if page := string(s.call(t, "GET", "/docs", "").body); !strings.Contains(page, "string or array of string") {
		t.Error("the page does not say what a command is")
	}
	began := time.Now()
	if got := s.exec(t, `{"command":"true"}`); time.Duration(got.DurationMS)*time.Millisecond > time.Since(began) {
		t.Errorf("it took %d ms", got.DurationMS)
	}
}

func TestExecsOfASleepingVM(t *testing.T) {
	s := newServer(t)
	path := "/vms/" + sleepingVM
	for _, look := range []string{"/execs", "/execs/exec_fake00000001", "/execs/exec_fake00000001/logs", "/execs/exec_fake00000001/attach"} {
		reply := s.call(t, "GET", path+look, "")
		wantStatus(t, reply, 409)
		if p := reply.problem(t); p.Code != "vm_not_running" || p.Hint != "wake it first" {
			t.Errorf("%s: %+v", look, p)
		}
	}
	wantStatus(t, s.call(t, "POST", path+"/exec", `{"command":"true"}`), 200)
	wantStatus(t, s.call(t, "POST", path+"/exec", `{"command":"sleep 60","background":true}`), 201)
	wantStatus(t, s.call(t, "POST", path+"/execs/exec_fake00000002/signal", `{"signal":"KILL"}`), 200)
	wantStatus(t, s.call(t, "DELETE", path+"/execs/exec_fake00000002", ""), 200)
}

// Arguments and the rest of a command may be any bytes.
func TestCommandsOfAnyBytes(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":["ZWNobw==","Y2Fm6Q=="],"cwd":"L3RtcA==","env":{"A":"/w=="},"encoding":"base64"}`), 200)
	reply := s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":["ZWNobw==","Y2Fm6Q=="],"encoding":"base64","output_encoding":"base64"}`)
	wantStatus(t, reply, 200)
	if !strings.Contains(string(reply.body), `"stdout":"Y2Fm6Qo="`) {
		t.Errorf("it is answered with %s", reply.body)
	}
	for body, field := range map[string]string{
		`{"command":["!"],"encoding":"base64"}`:                    "command",
		`{"command":"!","encoding":"base64"}`:                      "command",
		`{"command":"bHM=","cwd":"!","encoding":"base64"}`:         "cwd",
		`{"command":"bHM=","env":{"A":"!"},"encoding":"base64"}`:   "env",
		`{"command":"bHM=","cwd":"bHM=","encoding":"base64"}`:      "cwd",
		`{"command":["bHM=","YQBi"],"encoding":"base64"}`:          "command",
		`{"command":"bHM=","encoding":"latin1","cwd":"","env":{}}`: "encoding",
	} {
		reply := s.call(t, "POST", "/vms/"+knownVM+"/exec", body)
		if p := reply.problem(t); reply.StatusCode/100 != 4 || !strings.Contains(p.Detail, field+": ") {
			t.Errorf("%s is answered with %d %+v", body, reply.StatusCode, p)
		}
	}
}
