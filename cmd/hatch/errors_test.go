package main

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

func TestErrors(t *testing.T) {
	f := newFake(t)
	f.answer["POST /vms/vm_db0000000002/start"] = api.Problem{
		Status: 507, Error: "there is no memory left", Code: "no_memory", Hint: "stop a VM", RequestID: "req_1",
	}
	for _, tc := range []struct {
		code         int
		args, stderr string
	}{
		{exitNotFound, "inspect nope", "hatch: cannot inspect nope: there is no VM \"nope\"\nhint: hatch ls\n"},
		{exitNotFound, "inspect vm_zzz000000009", "hatch: cannot inspect vm_zzz000000009: there is no VM \"vm_zzz000000009\"\nhint: hatch ls\n"},
		{exitOwn, "stop vm_db", "hatch: cannot stop vm_db: \"vm_db\" could be any of these VMs: vm_db0000000002 (db), vm_db0000000003\nhint: give more of the id\n"},
		{exitOwn, "start db", "hatch: cannot start db: there is no memory left\nhint: stop a VM\nrequest: req_1\n"},
		{exitNotFound, "create --image nope", "hatch: cannot create the VM: there is no image \"nope\"\nhint: hatch image ls\n"},
		{exitNotFound, "create --template nope", "hatch: cannot create the VM: there is no template \"nope\"\nhint: hatch template ls\n"},
		{exitUsage, "create -m lots", "hatch: cannot create the VM: --memory takes a whole number of MiB, or one with m or g, as 512m or 1g, not \"lots\"\n"},
		{exitUsage, "create --label x", "hatch: cannot create the VM: --label takes KEY=VALUE, not \"x\"\n"},
		{exitOwn, "create --ssh-key default", "hatch: cannot create the VM: there is no ~/.ssh/id_*.pub\nhint: ssh-keygen -t ed25519\n"},
		{exitUsage, "create --wait done", "hatch: --wait takes running or ready, not \"done\"\nhint: hatch create --help\n"},
		{exitUsage, "create debian minimal", "hatch: hatch create takes one image; debian and minimal were given (a command goes after --)\nhint: hatch create --help\n"},
		{exitOwn, "run -d --rm", "hatch: -d cannot be combined with --rm or a command\nhint: hatch run --help\n"},
		{exitOwn, "ssh db", "hatch: cannot log in to db: it has no network\nhint: hatch console db\n"},
		{exitUsage, "sotp web", "hatch: there is no command \"sotp\"\nhint: did you mean hatch stop?\n"},
		{exitUsage, "image frobnicate", "hatch: there is no command \"frobnicate\"\nhint: hatch image --help\n"},
		{exitUsage, "stop", "hatch: hatch stop takes at least one VM\nhint: hatch stop --help\n"},
		{exitUsage, "ls --nope", "hatch: unknown flag: --nope\nhint: hatch ls --help\n"},
		{exitUsage, "ls -o xml", "hatch: invalid argument \"xml\" for \"-o, --output\" flag: \"xml\" is not one of table, wide, json, jsonl, yaml\nhint: hatch ls --help\n"},
		{exitUsage, "logs web --tail x", "hatch: --tail takes a number of lines or all, not \"x\"\nhint: hatch logs --help\n"},
		{exitUsage, "api GET vms", "hatch: hatch api takes a method and a path that starts with /\nhint: hatch api --help\n"},
		{exitOwn, "--url ftp://x ls", "hatch: cannot use \"ftp://x\" as the server's address: it must look like http://HOST:PORT or unix:///PATH\n"},
		{exitOwn, "--key-file /nonexistent ls", "hatch: cannot read the API key: open /nonexistent: no such file or directory\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(tc.args)...); code != tc.code {
				t.Errorf("exit code %d", code)
			}
			if s.stderr.String() != tc.stderr {
				t.Errorf("got  %q\nwant %q", &s.stderr, tc.stderr)
			}
			if s.stdout.Len() > 0 {
				t.Errorf("stdout: %q", &s.stdout)
			}
		})
	}
}

// What the client can know is wrong is refused before the first request.
func TestFlagsAreCheckedBeforeTheFirstRequest(t *testing.T) {
	for args, want := range map[string]string{
		"ls --filter colour=red":                `--filter takes FIELD=VALUE, FIELD!=VALUE, label=KEY or label=KEY=VALUE, not "colour=red"; fields are id, name,`,
		"image ls --filter label=x":             `not "label=x"; fields are id,`,
		"key ls --sort age":                     `--sort: there is no field "age"; there are id, name,`,
		"snapshot ls --sort -age":               `--sort: there is no field "age"`,
		"execs web --filter x":                  `not "x"`,
		"ls --format {{.id":                     "it is not a Go template",
		"create --wait ready --timeout 0s":      "--timeout takes more than 0s, such as 90s or 15m, not 0s",
		"create --image debian --label x":       "--label takes KEY=VALUE",
		"create --image debian --net-in-rate ?": "--net-in-rate",
		"run --timeout -1s":                     "--timeout takes more than 0s",
		"run -l -oProxyCommand=x -- true":       `cannot log in: "-oProxyCommand=x" is not a valid user name`,
		"run --label hatch.ssh.user=a/b":        `cannot log in: "a/b" is not a valid user name`,
		"rename web":                            "takes a VM and its new name",
		"start db --wait done":                  `--wait takes running or ready, not "done"`,
		"restart web --timeout 0s":              "--timeout takes more than 0s",
		"wait web --timeout -1s":                "--timeout takes more than 0s",
		"ssh -l a/b web":                        `cannot log in to web: "a/b" is not a valid user name`,
		"exec --timeout -1s web true":           "--timeout takes a millisecond or more",
		"fork web -n 0":                         "--count takes 1 or more, not 0",
		"fork web --label x":                    "--label takes KEY=VALUE",
		"fork web --ssh-key /none":              "/none",
		"template create t --image debian -m ?": "--memory takes",
		"image warm debian --disk ?":            "--disk takes",
	} {
		t.Run(args, func(t *testing.T) {
			f := newFake(t)
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code == 0 || !strings.Contains(s.stderr.String(), want) {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
			if len(f.calls) > 0 {
				t.Errorf("calls: %q", f.calls)
			}
		})
	}
}

func TestErrorsAsJSON(t *testing.T) {
	f := newFake(t)
	f.answer["POST /vms"] = api.Problem{Status: 400, Title: "Bad Request", Error: "vcpu_count: 99 is out of range", Code: "invalid_vcpu_count", Field: "vcpu_count", Hint: "1 to 2", RequestID: "req_1"}
	s := newSession(t, f)
	if code := s.hatch("create", "-o", "json"); code != exitOwn {
		t.Errorf("exit code %d", code)
	}
	var p api.Problem
	if err := json.Unmarshal(s.stderr.Bytes(), &p); err != nil {
		t.Fatalf("%v: %s", err, &s.stderr)
	}
	if p.Code != "invalid_vcpu_count" || p.Hint != "1 to 2" || p.RequestID != "req_1" || p.Error != "cannot create the VM: vcpu_count: 99 is out of range" {
		t.Errorf("got %+v", p)
	}
	s.hatch("inspect", "nope", "-o", "json")
	if err := json.Unmarshal(s.stderr.Bytes(), &p); err != nil || p.Code != "vm_not_found" || p.Hint != "hatch ls" {
		t.Errorf("our own: %v %s", err, &s.stderr)
	}
}

func TestNoEscapesFromTheServerInErrors(t *testing.T) {
	f := newFake(t)
	f.answer["GET /vms"] = api.Problem{Status: 500, Error: "bad\x1b]0;owned\a thing", Code: "internal"}
	s := newSession(t, f)
	s.hatch("ls")
	if want := "hatch: cannot list VMs: bad thing\n"; s.stderr.String() != want {
		t.Errorf("got %q", &s.stderr)
	}
}

func TestWithoutAKeyTheHintSaysWhereFrom(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	delete(s.env, "HATCH_API_KEY")
	if code := s.hatch("ls"); code != exitAuth {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(s.stderr.String(), "hint: log in with hatch login URL, or give a key in HATCH_API_KEY") {
		t.Errorf("stderr: %s", &s.stderr)
	}
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := newFake(t)
	var stderr strings.Builder
	code := run(ctx, []string{"--url", f.URL, "ls"}, streams{
		in: strings.NewReader(""), out: io.Discard, err: &stderr,
		env: func(string) string { return "" }, now: time.Now,
	})
	if code != exitInterrupted || stderr.String() != "hatch: interrupted\n" {
		t.Errorf("exit code %d, stderr %q", code, &stderr)
	}
}

func TestAnUnwellServerFailsHealth(t *testing.T) {
	f := newFake(t)
	f.health.Status = "degraded"
	s := newSession(t, f)
	delete(s.env, "HATCH_API_KEY")
	if code := s.hatch("health"); code != exitOwn {
		t.Errorf("exit code %d", code)
	}
}

func TestAPIPrintsTheProblem(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("api", "GET", "/vms/vm_none"); code != exitNotFound {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(s.stdout.String(), `"code":"not_found"`) || !strings.Contains(s.stderr.String(), "404 Not Found") {
		t.Errorf("stdout %q, stderr %q", &s.stdout, &s.stderr)
	}
}

// Each kind of failure can be told from the others, except by commands that exit
// with the code of a guest.
func TestExitCodes(t *testing.T) {
	f := newFake(t)
	f.answer["GET /vms/vm_web000000001/wait"] = api.Problem{Status: 503, Error: "late", Code: "wait_timeout"}
	f.answer["POST /vms/vm_web000000001/pause"] = api.Problem{Status: 409, Error: "it sleeps", Code: "vm_not_running"}
	for _, tc := range []struct {
		args   string
		code   int
		inJSON string
	}{
		{"inspect web", 0, ""},
		{"ls --nope", exitUsage, "usage"},
		{"sotp web", exitUsage, "usage"},
		{"inspect nope", exitNotFound, "vm_not_found"},
		{"image inspect nope", exitNotFound, "image_not_found"},
		{"--key-file KEY ls", exitAuth, "invalid_api_key"},
		{"--url http://127.0.0.1:1 ls", exitUnreachable, "unreachable"},
		{"--url http://127.0.0.1:1 events -f", exitUnreachable, "unreachable"},
		{"wait web", exitTimeout, "wait_timeout"},
		{"pause web", exitOwn, "vm_not_running"},
		{"pause nope web", exitNotFound, ""},
		{"exec --nope web true", exitOwn, "usage"},
		{"exec nope true", exitOwn, "vm_not_found"},
		{"--url http://127.0.0.1:1 exec web true", exitOwn, "unreachable"},
		{"run --nope", exitOwn, "usage"},
		{"ssh nope", exitOwn, "vm_not_found"},
		{"execs attach nope x", exitOwn, "vm_not_found"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			s := newSession(t, f)
			key := filepath.Join(s.env["HOME"], "key")
			writeFile(t, key, "hatch_wrong")
			args := strings.Fields(strings.ReplaceAll(tc.args, "KEY", key))
			if code := s.hatch(args...); code != tc.code {
				t.Errorf("exit code %d, want %d: %s", code, tc.code, &s.stderr)
			}
			if tc.inJSON == "" {
				return
			}
			s.hatch(append([]string{"-o", "jsonl"}, args...)...)
			var p api.Problem
			if err := json.Unmarshal(s.stderr.Bytes(), &p); err != nil || p.Code != tc.inJSON {
				t.Errorf("code %q, want %q: %v %s", p.Code, tc.inJSON, err, &s.stderr)
			}
		})
	}
}
