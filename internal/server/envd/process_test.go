package envd_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const processes = "/process.Process/"

// TestStart has commands as the SDKs start them, and the events that they must get.
func TestStart(t *testing.T) {
	w := newWorld(t)
	w.stream(t, processes+"Start", script("echo hi", `,"stdin":false`)).want(
		`{"event":{"start":{"pid":101}}}`, `{"event":{"data":{"stdout":"aGkK"}}}`, `{"event":{"end":{"exited":true,"status":"exit status 0"}}}`, `{}`)
	for name, c := range map[string]struct{ request, stdout, stderr, end string }{
		"an exit code":     {script("echo a; echo b >&2; exit 3", ""), "a\n", "b\n", `{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}{}`},
		"no such program":  {`{"process":{"cmd":"nothing"}}`, "", "nothing: not found\n", `{"exitCode":127,"exited":true,"status":"exit status 127","error":"exit status 127"}{}`},
		"an environment":   {`{"process":{"cmd":"env","envs":{"A":"2","B":"x=\""}}}`, "A=2\nB=x=\"\nE2B_SANDBOX=true\nE2B_SANDBOX_ID=iabc\nE2B_TEMPLATE_ID=base\n", "", `{"exited":true,"status":"exit status 0"}{}`},
		"the default user": {script("whoami; pwd", ""), "user\n/root\n", "", `{"exited":true,"status":"exit status 0"}{}`},
		"no stdin":         {script("cat", `,"stdin":false`), "", "", `{"exited":true,"status":"exit status 0"}{}`},
	} {
		e := w.stream(t, processes+"Start", c.request)
		e.pid()
		if stdout, stderr, _, end := e.rest(); stdout != c.stdout || stderr != c.stderr || end != c.end {
			t.Errorf("%s: %q, %q, %s", name, stdout, stderr, end)
		}
	}
	for cwd, want := range map[string]string{"a/b": "/home/user/a/b", "~": "/home/user", "~/x": "/home/user/x", "/srv/": "/srv/", ".": "/home/user"} {
		e := w.stream(t, processes+"Start", `{"process":{"cmd":"pwd","cwd":"`+cwd+`"}}`)
		e.pid()
		if stdout, _, _, _ := e.rest(); stdout != want+"\n" {
			t.Errorf("cwd %q is %q", cwd, stdout)
		}
	}
	e := w.stream(t, processes+"Start", script("whoami", ""), "Authorization", "Basic "+b64("root:"))
	e.pid()
	if stdout, _, _, _ := e.rest(); stdout != "root\n" {
		t.Errorf("the user is %q", stdout)
	}
}

// TestRefusedStarts must end each stream with an error, without an event.
func TestRefusedStarts(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ request, want string }{
		"no command":       {`{}`, `{"error":{"code":"invalid_argument","message":"command: there is nothing to run"}}`},
		"an odd size":      {script("true", `,"pty":{"size":{"cols":0,"rows":5}}`), `{"error":{"code":"invalid_argument","message":"pty.size: 5 rows and 0 cols are out of range; both are 1 to 65535"}}`},
		"a negative size":  {script("true", `,"pty":{"size":{"cols":-1,"rows":5}}`), `{"error":{"code":"invalid_argument","message":"-1 is not a number from 0 to 4294967295"}}`},
		"an unknown field": {`{"process":{"cmd":"true","args":{}}}`, `{"error":{"code":"invalid_argument","message":"the message's field \"process.args\" has the wrong type: it is a object"}}`},
	} {
		if got, end := w.stream(t, processes+"Start", c.request).next(); got != c.want || !end {
			t.Errorf("%s: %s", name, got)
		}
	}
	got, _ := w.stream(t, processes+"Start", script("true", ""), "Authorization", "Basic "+b64("no-one:")).next()
	if !strings.HasPrefix(got, `{"error":{"code":"unauthenticated","message":"invalid username: 'no-one'`) {
		t.Errorf("an unknown user: %s", got)
	}
}

// TestProcessOutlivesItsStream cuts the stream of a process, finds the process by its pid
// and its tag, writes to it, and reads its end, also late.
func TestProcessOutlivesItsStream(t *testing.T) {
	w := newWorld(t)
	started := w.stream(t, processes+"Start", script("cat", `,"tag":"the-cat"`))
	pid := started.pid()
	started.leave()
	list := `{"processes":[{"config":{"cmd":"/bin/bash","args":["-l","-c","cat"]},"pid":101,"tag":"the-cat"}]}`
	w.call(t, processes+"List", "{}").want(t, 200, list)

	byPID := w.stream(t, processes+"Connect", fmt.Sprintf(`{"process":{"pid":%s}}`, pid))
	byTag := w.stream(t, processes+"Connect", `{"process":{"tag":"the-cat","pid":null}}`)
	for _, e := range []*events{byPID, byTag} {
		e.want(`{"event":{"start":{"pid":101}}}`)
	}
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":"%s"},"input":{"stdin":"%s"}}`, pid, b64("hi\n"))).want(t, 200, "{}")
	for _, e := range []*events{byPID, byTag} {
		e.want(`{"event":{"data":{"stdout":"aGkK"}}}`)
	}
	input := frame(`{"start":{"process":{"pid":101}}}`) + frame(`{"keepalive":{}}`) + frame(`{"data":{"input":{"stdin":"`+b64("more")+`"}}}`)
	w.send(t, http.MethodPost, processes+"StreamInput", input, "Content-Type", "application/connect+json").
		want(t, 200, frame("{}")+"\x02\x00\x00\x00\x02{}")
	byTag.want(`{"event":{"data":{"stdout":"` + b64("more") + `"}}}`)
	w.call(t, processes+"CloseStdin", `{"process":{"pid":101}}`).want(t, 200, "{}")
	end := `{"event":{"end":{"exited":true,"status":"exit status 0"}}}`
	byTag.want(end, `{}`)

	w.stream(t, processes+"Connect", `{"process":{"pid":101}}`).want(`{"event":{"start":{"pid":101}}}`, end, `{}`)
	w.call(t, processes+"List", "{}").want(t, 200, `{"processes":[]}`)
	w.call(t, processes+"SendInput", `{"process":{"pid":101},"input":{"stdin":"YQ=="}}`).wantError(t, 404, "not_found", "process with pid 101 not found")
}

func TestSignals(t *testing.T) {
	w := newWorld(t)
	for signal, text := range map[string]string{`"SIGNAL_SIGKILL"`: "killed", "9": "killed", `"SIGNAL_SIGTERM"`: "terminated"} {
		e := w.stream(t, processes+"Start", script("sleep 60", ""))
		pid := e.pid()
		w.call(t, processes+"SendSignal", fmt.Sprintf(`{"process":{"pid":%s},"signal":%s}`, pid, signal)).want(t, 200, "{}")
		e.want(`{"event":{"end":{"exitCode":-1,"status":"signal: `+text+`","error":"signal: `+text+`"}}}`, `{}`)
		w.call(t, processes+"SendSignal", fmt.Sprintf(`{"process":{"pid":%s},"signal":9}`, pid)).
			wantError(t, 404, "not_found", fmt.Sprintf("process with pid %s not found", pid))
	}
	w.call(t, processes+"SendSignal", `{"process":{"pid":99},"signal":"SIGNAL_SIGKILL"}`).wantError(t, 404, "not_found", "process with pid 99 not found")
	w.call(t, processes+"SendSignal", `{"process":{"tag":"x"},"signal":15}`).wantError(t, 404, "not_found", `process with tag "x" not found`)
	w.call(t, processes+"SendSignal", `{"process":{"pid":99},"signal":1}`).wantError(t, 400, "invalid_argument", "signal")
	w.call(t, processes+"SendSignal", `{"process":{"pid":99}}`).wantError(t, 400, "invalid_argument", "signal")
	w.call(t, processes+"SendSignal", `{"signal":9}`).wantError(t, 400, "invalid_argument", "pid or a tag")
}

// TestAReusedPID has an entry of an ended process in the door's memory.
func TestAReusedPID(t *testing.T) {
	w := newWorld(t)
	e := w.stream(t, processes+"Start", script("sleep 60", ""))
	pid := e.pid()
	w.call(t, processes+"SendSignal", fmt.Sprintf(`{"process":{"pid":%s},"signal":9}`, pid)).want(t, 200, "{}")
	e.rest()
	w.call(t, processes+"SendInput", `{"process":{"pid":101},"input":{"stdin":"YQ=="}}`).wantError(t, 404, "not_found", "process with pid 101 not found")
	w.call(t, processes+"CloseStdin", `{"process":{"pid":101}}`).want(t, 200, "{}")
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	e := w.stream(t, processes+"Start", `{"process":{"cmd":"stty","args":["wait"]},"pty":{"size":{"cols":"80","rows":24}}}`)
	pid := e.pid()
	e.want(`{"event":{"data":{"pty":"` + b64("24 80\r\n") + `"}}}`)
	w.call(t, processes+"Update", fmt.Sprintf(`{"process":{"pid":%s},"pty":{"size":{"cols":132,"rows":50}}}`, pid)).want(t, 200, "{}")
	e.want(`{"event":{"data":{"pty":"` + b64("50 132\r\n") + `"}}}`)
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"stdin":"YQ=="}}`, pid)).wantError(t, 500, "internal", "terminal")
	w.call(t, processes+"CloseStdin", fmt.Sprintf(`{"process":{"pid":%s}}`, pid)).wantError(t, 400, "failed_precondition", "0x04")
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"pty":"Aw=="}}`, pid)).want(t, 200, "{}")
	if _, _, pty, end := e.rest(); pty != "^C" || end != `{"exitCode":-1,"status":"signal: interrupt","error":"signal: interrupt"}{}` {
		t.Errorf("%q, %s", pty, end)
	}
	plain := w.stream(t, processes+"Start", script("sleep 60", `,"stdin":false`))
	pid = plain.pid()
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"pty":"YQ=="}}`, pid)).wantError(t, 500, "internal", "no terminal")
	w.call(t, processes+"SendInput", fmt.Sprintf(`{"process":{"pid":%s},"input":{"stdin":"YQ=="}}`, pid)).wantError(t, 500, "internal", "stdin")
	w.call(t, processes+"CloseStdin", fmt.Sprintf(`{"process":{"pid":%s}}`, pid)).want(t, 200, "{}")
	w.call(t, processes+"Update", fmt.Sprintf(`{"process":{"pid":%s},"pty":{"size":{"cols":1,"rows":1}}}`, pid)).wantError(t, 500, "internal", "terminal")
}

// TestTimeoutKills requires the end of a command before the client's own clock ends it,
// and the end of a stream of another process without its death.
func TestTimeoutKills(t *testing.T) {
	w := newWorld(t)
	began := time.Now()
	e := w.stream(t, processes+"Start", script("sleep 60", ""), "Connect-Timeout-Ms", "400")
	e.pid()
	if got, end := e.next(); !end || !strings.HasPrefix(got, `{"error":{"code":"deadline_exceeded"`) {
		t.Errorf("it ended with %s", got)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("it ended after %v", took)
	}
	w.table.AwaitRunning(0)

	e = w.stream(t, processes+"Start", script("sleep 60", ""))
	pid := e.pid()
	watching := w.stream(t, processes+"Connect", fmt.Sprintf(`{"process":{"pid":%s}}`, pid), "Connect-Timeout-Ms", "40")
	watching.pid()
	if got, end := watching.next(); !end || !strings.HasPrefix(got, `{"error":{"code":"deadline_exceeded"`) {
		t.Errorf("it ended with %s", got)
	}
	if w.table.Running() != 1 {
		t.Error("the process has ended with a stream")
	}
}

// TestLostGuest requires the code by which the SDKs ask for the sandbox's health.
func TestLostGuest(t *testing.T) {
	w := newWorld(t)
	e := w.stream(t, processes+"Start", script("sleep 60", ""))
	e.pid()
	w.table.SetLost(true)
	if got, end := e.next(); !end || !strings.HasPrefix(got, `{"error":{"code":"unavailable"`) {
		t.Errorf("it ended with %s", got)
	}
	w.call(t, processes+"List", "{}").wantError(t, 503, "unavailable", "")
	w.table.SetLost(false)
}

func TestMuchOutput(t *testing.T) {
	w := newWorld(t)
	e := w.stream(t, processes+"Start", script("seq 3000", ""))
	e.pid()
	stdout, _, _, end := e.rest()
	if lines := strings.Count(stdout, "\n"); lines != 3000 || !strings.HasSuffix(end, "{}") {
		t.Errorf("%d lines, %s", lines, end)
	}
}

// TestStreamInputRefuses has streams whose beginning is wrong.
func TestStreamInputRefuses(t *testing.T) {
	w := newWorld(t)
	for body, want := range map[string]string{
		"": `invalid_argument`, frame(`{"data":{}}`): `invalid_argument`, frame("{"): `invalid_argument`,
		frame(`{"start":{"process":{"pid":7}}}`): `"not_found","message":"process with pid 7 not found"`,
	} {
		r := w.send(t, http.MethodPost, processes+"StreamInput", body, "Content-Type", "application/connect+json")
		if r.StatusCode != 200 || r.body[0] != 2 || !strings.Contains(r.body, want) || !json.Valid([]byte(r.body[5:])) {
			t.Errorf("%q: status %d, %q", body, r.StatusCode, r.body)
		}
	}
}
