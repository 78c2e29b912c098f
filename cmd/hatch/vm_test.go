package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

func TestOutputFormats(t *testing.T) {
	f := newFake(t)
	for name, args := range map[string]string{
		"ls.txt":             "ls",
		"ls-wide.txt":        "ps -a -o wide",
		"ls.json":            "ls -o json",
		"ls.jsonl":           "ls -o jsonl",
		"ls.yaml":            "ls -o yaml",
		"ls-quiet.txt":       "ls -q",
		"ls-stopped.txt":     "ls --filter state=stopped",
		"inspect.json":       "inspect web",
		"inspect-table.txt":  "inspect web -o table",
		"image-ls.txt":       "image ls",
		"image-ls-wide.txt":  "image ls -o wide",
		"template-ls.txt":    "template ls -o wide",
		"key-ls.txt":         "key ls",
		"health.txt":         "health",
		"ssh-config-web.txt": "ssh-config web",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			golden(t, name, strings.ReplaceAll(s.stdout.String(), s.env["HOME"], "HOME"))
			if strings.Contains(s.stdout.String(), "\x1b") && !strings.Contains(name, "json") {
				t.Error("an escape sequence went to a pipe")
			}
		})
	}
}

func TestEmptyListIsAnArray(t *testing.T) {
	f := newFake(t)
	f.vms = nil
	s := newSession(t, f)
	if s.hatch("ls", "-o", "json"); s.stdout.String() != "[]\n" {
		t.Errorf("got %q", &s.stdout)
	}
}

func TestColours(t *testing.T) {
	f := newFake(t)
	for name, tc := range map[string]struct {
		tty  bool
		env  map[string]string
		want bool
	}{
		"pipe":            {false, nil, false},
		"terminal":        {true, nil, true},
		"NO_COLOR":        {true, map[string]string{"NO_COLOR": "1"}, false},
		"CLICOLOR_FORCE":  {false, map[string]string{"CLICOLOR_FORCE": "1"}, true},
		"CLICOLOR_FORCE0": {false, map[string]string{"CLICOLOR_FORCE": "0"}, false},
		"dumb terminal":   {true, map[string]string{"TERM": "dumb"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, f)
			s.tty = tc.tty
			maps.Copy(s.env, tc.env)
			s.hatch("ls")
			if got := strings.Contains(s.stdout.String(), "\x1b[32mrunning\x1b[0m"); got != tc.want {
				t.Errorf("coloured: %v", got)
			}
		})
	}
}

// TestFailedCreateSaysWhichVM expects the id of what a failed create has left, and
// that hatch run --rm removes it.
func TestFailedCreateSaysWhichVM(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	failed := api.Problem{Status: 500, Error: "cannot start it", Code: "start_failed", VMID: "vm_left00000009"}
	f.answer["POST /vms"] = failed
	if code := s.hatch("create"); code != exitOwn || !strings.Contains(s.stderr.String(), "hint: hatch why vm_left00000009") || s.stdout.Len() > 0 {
		t.Errorf("exit code %d: %s%s", code, &s.stdout, &s.stderr)
	}
	f.vms = append(f.vms, api.VM{ID: "vm_left00000009"})
	left := len(f.vms)
	if code := s.hatch("run", "--rm"); code != exitOwn || len(f.vms) != left-1 {
		t.Errorf("exit code %d, %d VMs: %s", code, len(f.vms), &s.stderr)
	}
}

func TestCreateSendsWhatWasGiven(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	keys := filepath.Join(s.env["HOME"], "keys.pub")
	writeFile(t, keys, "# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB you\n")
	s.stdin = strings.NewReader("#!/bin/sh\necho <hi>\n")
	code := s.hatch("create", "--name", "new", "--template", "small", "--cpus", "2", "-m", "1g", "--disk", "512",
		"--ip", "172.16.0.9", "--mac", "02:FC:00:00:00:09", "--boot-args", "", "--no-network", "--user-data", "-",
		"--ssh-key", keys, "--label", "a=b", "--label", "c=d=e", "--vmm", "qemu", "--disk-rate", "20m", "--disk-ops", "500", "--net-in-rate", "65536", "--net-out-rate", "0", "--idempotency-key", "k1", "minimal")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if got := s.stdout.String(); got != "vm_new000000009\n" {
		t.Errorf("printed %q", got)
	}
	var req api.CreateVM
	if err := json.Unmarshal([]byte(f.lastBody(t)), &req); err != nil {
		t.Fatal(err)
	}
	pretty, _ := json.MarshalIndent(req, "", "  ")
	golden(t, "create-request.json", string(pretty)+"\n")
	if !f.called("POST /vms?wait=running") {
		t.Errorf("calls: %q", f.calls)
	}
}

func TestARateThatCannotBeSaidIsRefused(t *testing.T) {
	for text, want := range map[string]int64{"8589934591g": 8589934591 << 30, "8589934592g": 0, "17179869184g": 0, "99999999999m": 99999999999 << 20} {
		t.Run(text, func(t *testing.T) {
			got, err := rate("net-in-rate", text)
			if got != want || (err == nil) != (want != 0) {
				t.Errorf("%s is %d: %v", text, got, err)
			}
		})
	}
}

func TestCreateSendsNothingElse(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("create"); code != 0 {
		t.Fatal(&s.stderr)
	}
	if body := f.lastBody(t); body != "{}" {
		t.Errorf("sent %s", body)
	}
}

func TestCreateWaitsUntilReady(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("create", "--wait", "ready", "--timeout", "90s"); code != 0 {
		t.Fatal(&s.stderr)
	}
	if !f.called("GET /vms/vm_new000000009/wait?for=ready&timeout=1m30s") {
		t.Errorf("calls: %q", f.calls)
	}
	f.answer["GET /vms/vm_new000000009/wait"] = api.Problem{Status: 504, Error: "it took too long", Code: "wait_timeout", Hint: "wait on"}
	if code := s.hatch("create", "--wait", "ready", "-q"); code != exitTimeout {
		t.Errorf("exit code %d", code)
	}
	if s.stdout.String() != "vm_new000000009\n" {
		t.Errorf("the id of the VM that exists was not printed: %q", &s.stdout)
	}
	want := "hatch: vm_new000000009 was created, but is not ready: it took too long\nhint: hatch logs vm_new000000009 "
	if !strings.HasPrefix(s.stderr.String(), want) {
		t.Errorf("stderr: %s", &s.stderr)
	}
}

func TestVerbs(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	for _, tc := range []struct{ args, call, out string }{
		{"start db", "POST /vms/vm_db0000000002/start", "db\n"},
		{"start db --wait ready --timeout 90s", "GET /vms/vm_db0000000002/wait?for=ready&timeout=1m30s", "db\n"},
		{"stop web", "POST /vms/vm_web000000001/stop", "web\n"},
		{"stop -t 5 web", "POST /vms/vm_web000000001/stop?timeout=5s", "web\n"},
		{"stop --timeout 2m web", "POST /vms/vm_web000000001/stop?timeout=2m0s", "web\n"},
		{"rename web shop", "PATCH /vms/vm_web000000001", "web\n"},
		{"kill web", "POST /vms/vm_web000000001/stop?timeout=0s", "web\n"},
		{"restart vm_web", "POST /vms/vm_web000000001/restart", "vm_web\n"},
		{"pause web db", "POST /vms/vm_db0000000002/pause", "web\ndb\n"},
		{"resume web000000001", "POST /vms/vm_web000000001/resume", "web000000001\n"},
		{"wait web --for port:80 --timeout 2m", "GET /vms/vm_web000000001/wait?for=port%3A80&timeout=2m0s", "web\n"},
		{"logs web --since 15m -t", "GET /vms/vm_web000000001/logs?since=2026-03-06T11%3A45%3A00Z&source=console&timestamps=true", "boot \x1b[32mok\x1b[0m\r\nlogin:\n"},
		{"logs web --tail 5 -f", "GET /vms/vm_web000000001/logs?follow=true&source=console&tail=5", "boot \x1b[32mok\x1b[0m\r\nlogin:\n"},
		{"image build minimal", "POST /images/builds", "img_minimal\n"},
		{"image rm debian", "DELETE /images/img_default", "debian\n"},
		{"image add --kernel /k --rootfs /r", "POST /images", "img_mine\n"},
		{"template create big -m 4g", "POST /templates", "tpl_new\n"},
		{"template rm small", "DELETE /templates/tpl_small0000001", "small\n"},
		{"key create ci", "POST /keys", "hatch_secret\n"},
		{"key rm admin", "DELETE /keys/key_admin0000001", "admin\n"},
		{"api get /keys", "GET /keys", `[{"id":"key_admin0000001","name":"admin","user_id":"acc_admin","prefix":"hatch_abcdef","scopes":["admin"],"created_at":"2026-03-06T11:00:00.000Z"}]` + "\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(tc.args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			if !f.called(tc.call) {
				t.Errorf("calls: %q", f.calls)
			}
			if s.stdout.String() != tc.out {
				t.Errorf("printed %q", &s.stdout)
			}
		})
	}
}

func TestBuildLogGoesToStderr(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.hatch("image", "build", "minimal")
	if s.stderr.String() != "unpacking\n" {
		t.Errorf("stderr: %q", &s.stderr)
	}
}

func TestLogsOnATerminalCarryNoEscapes(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.tty = true
	s.hatch("logs", "web")
	if s.stdout.String() != "boot ok\nlogin:\n" {
		t.Errorf("printed %q", &s.stdout)
	}
	s.hatch("logs", "web", "--raw")
	if !strings.Contains(s.stdout.String(), "\x1b[32m") {
		t.Errorf("--raw printed %q", &s.stdout)
	}
}

func TestRm(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("rm", "web", "db"); code != exitOwn {
		t.Errorf("exit code %d", code)
	}
	if got, want := s.stderr.String(), "hatch: cannot remove web: it is running\nhint: hatch rm -f vm_web000000001, or stop it first\n"; got != want {
		t.Errorf("stderr: %s", got)
	}
	if s.stdout.String() != "db\n" || len(f.vms) != 2 {
		t.Errorf("the stopped one was not removed: %q, %d left", &s.stdout, len(f.vms))
	}
	known := filepath.Join(s.env["HOME"], ".local/state/hatch/known_hosts/vm_web000000001")
	writeFile(t, known, "key")
	if code := s.hatch("rm", "-f", "web", "gone"); code != 0 {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if s.stdout.String() != "web\n" || s.stderr.String() != "there is no VM \"gone\"; nothing was deleted\n" {
		t.Errorf("printed %q, %q", &s.stdout, &s.stderr)
	}
	if _, err := os.Stat(known); !os.IsNotExist(err) {
		t.Error("the host key of a removed VM is still there")
	}
}

func TestTheKeyInUseIsKept(t *testing.T) {
	f := newFake(t)
	f.keys[0].Current = true
	s := newSession(t, f)
	if code := s.hatch("key", "rm", "admin"); code != exitOwn || f.called("DELETE /keys/key_admin0000001") {
		t.Errorf("exit code %d, calls %q", code, f.calls)
	}
	if code := s.hatch("key", "rm", "--force", "admin"); code != 0 || !f.called("DELETE /keys/key_admin0000001") {
		t.Errorf("exit code %d, calls %q", code, f.calls)
	}
}

// One argument gives one object, several give a list, in every structured format.
func TestSeveralObjectsAreAList(t *testing.T) {
	for args, want := range map[string]string{
		"rm -f web -o jsonl":        `{"status":"deleted","id":"vm_web000000001","name":"web","ref":"web"}` + "\n",
		"rm -f web gone -o yaml":    "- status: deleted\n  id: vm_web000000001\n  name: web\n  ref: web\n- status: absent\n  ref: gone\n",
		"rm db nope -o jsonl":       `{"status":"deleted","id":"vm_db0000000002","name":"db","ref":"db"}` + "\n",
		"rm nope nada -o json":      "[]\n",
		"image rm debian -o jsonl":  `{"status":"deleted","id":"img_default","name":"debian","ref":"debian"}` + "\n",
		"key rm admin nope -o yaml": "- status: deleted\n  id: key_admin0000001\n  name: admin\n  ref: admin\n",
		"execs rm web run -o jsonl": `{"status":"deleted","id":"exec_run000000001","ref":"run"}` + "\n",
		"image rm debian nope":      "debian\n",
		"rm -f gone -o jsonl":       `{"status":"absent","ref":"gone"}` + "\n",
	} {
		t.Run(args, func(t *testing.T) {
			s := newSession(t, newFake(t))
			s.hatch(strings.Fields(args)...)
			if s.stdout.String() != want {
				t.Errorf("printed %q, want %q: %s", &s.stdout, want, &s.stderr)
			}
		})
	}
	for _, args := range []string{"inspect web db -o json", "inspect web db", "stop web db -o json", "pause web nope db -o json"} {
		t.Run(args, func(t *testing.T) {
			s := newSession(t, newFake(t))
			s.hatch(strings.Fields(args)...)
			var list []api.VM
			if err := json.Unmarshal(s.stdout.Bytes(), &list); err != nil || len(list) != 2 || list[1].Name != "db" {
				t.Errorf("%v: printed %s", err, &s.stdout)
			}
		})
	}
}

func TestConsole(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.stdin = strings.NewReader("root\n")
	if code := s.hatch("console", "web"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if typed := <-f.console; s.stdout.String() != "login: " || typed != "root\n" {
		t.Errorf("printed %q, typed %q", &s.stdout, typed)
	}
}

func TestConsoleDetachKey(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.tty, s.stdin = true, strings.NewReader("ls\x1dnever typed")
	if code := s.hatch("console", "web"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if typed := <-f.console; typed != "ls" {
		t.Errorf("typed %q", typed)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestProgressIsForTerminalsOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		tty    bool
		format format
		want   bool
	}{
		"terminal":         {true, formatTable, true},
		"pipe":             {false, formatTable, false},
		"terminal as JSON": {true, formatJSON, false},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr strings.Builder
			c := &printer{format: tc.format, streams: streams{err: &stderr, errTTY: tc.tty, now: time.Now}}
			c.progress("creating the VM")()
			if got := strings.Contains(stderr.String(), "creating the VM"); got != tc.want {
				t.Errorf("got %q", &stderr)
			}
			if tc.want && !strings.HasSuffix(stderr.String(), "\r\x1b[K") {
				t.Errorf("the line is left behind: %q", &stderr)
			}
		})
	}
}
