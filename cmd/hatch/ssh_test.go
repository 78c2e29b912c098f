package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
)

// fakeSSH puts a program named ssh into PATH that prints its arguments and
// exits with code.
func fakeSSH(t *testing.T, code string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\nfor a in \"$@\"; do echo \"$a\"; done\nexit " + code + "\n"
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestSSH(t *testing.T) {
	fakeSSH(t, "7")
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("ssh", "web", "ls", "-l", "a b"); code != 7 {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	golden(t, "ssh-args.txt", loginDir.ReplaceAllString(s.stdout.String(), `"LOGIN/`))
	for _, args := range []string{"ssh web -- true", "ssh -l bob web uptime", "ssh web"} {
		t.Run(args, func(t *testing.T) {
			s.hatch(strings.Fields(args)...)
			words := strings.Fields(s.stdout.String())
			if at := len(words) - 1; args != "ssh web" && words[at-1] != "127.0.0.1" {
				t.Errorf("%s: the host is not before the command: %q", args, words)
			}
			if strings.Contains(args, "bob") && words[3] != "bob" {
				t.Errorf("the user was not taken: %q", words)
			}
		})
	}
}

// hostKey is that of the VMs of the fake server.
const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"

var loginDir = regexp.MustCompile(`"[^"]*/hatch-ssh-[0-9]+/`)

// ssh gets a new key, its certificate and the host keys, and nothing is left of them.
func TestSSHUsesACertificate(t *testing.T) {
	temp, kept := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("KEPT", kept)
	bin := t.TempDir()
	script := "#!/bin/sh\nstat -c '%a %n' \"$TMPDIR\"/hatch-ssh-*/* | sed 's|/.*/||'; cp \"$TMPDIR\"/hatch-ssh-*/* \"$KEPT\"\n"
	writeFile(t, filepath.Join(bin, "ssh"), script)
	if err := os.Chmod(filepath.Join(bin, "ssh"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("ssh", "web"); code != 0 || s.stdout.String() != "600 key\n600 key-cert.pub\n600 known_hosts\n" {
		t.Errorf("exit code %d, printed %q: %s", code, &s.stdout, &s.stderr)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	private, err := os.ReadFile(filepath.Join(kept, "key"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if body, public := f.lastBody(t), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); !strings.Contains(body, public) || !strings.Contains(body, `"username":"alice"`) {
		t.Errorf("sent %s for %s", body, public)
	}
	for name, want := range map[string]string{"key-cert.pub": "ssh-ed25519-cert-v01@openssh.com AAAA\n", "known_hosts": "vm_web000000001 " + hostKey + "\n"} {
		if got, err := os.ReadFile(filepath.Join(kept, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
}

// A guest, a key or a server that knows no certificates is used without, and this is said.
func TestSSHWithoutACertificate(t *testing.T) {
	for name, tc := range map[string]struct {
		problem api.Problem
		args    string
		code    int
		said    string
	}{
		"the guest":     {api.Problem{Status: 409, Code: "ssh_certificates_unsupported"}, "web", 0, "note: the guest accepts no certificates"},
		"the key":       {api.Problem{Status: 403, Code: "forbidden"}, "web", 0, "note: the API key has no scope exec:write"},
		"the server":    {api.Problem{Status: 404, Code: "not_found"}, "web", 0, "note: hatchd is too old"},
		"another error": {api.Problem{Status: 503, Code: "ssh_not_known", Error: "not yet"}, "web", exitOwn, "not yet"},
		"own key":       {api.Problem{Status: 503}, "-i key web", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fakeSSH(t, "0")
			f := newFake(t)
			f.answer["POST /vms/vm_web000000001/connect"] = tc.problem
			s := newSession(t, f)
			code := s.hatch(append([]string{"ssh"}, strings.Fields(tc.args)...)...)
			if code != tc.code || !strings.Contains(s.stderr.String(), tc.said) || (tc.said == "") != (s.stderr.Len() == 0) {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
			if own := strings.Contains(s.stdout.String(), "StrictHostKeyChecking=accept-new"); own != (code == 0) {
				t.Errorf("ssh got %s", &s.stdout)
			}
		})
	}
}

// The files of ssh-cert stay until the VM is deleted.
func TestSSHCert(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	dir := filepath.Join(s.env["HOME"], ".local/state/hatch/known_hosts/vm_web000000001.login")
	for range 2 {
		if code := s.hatch("ssh-cert", "web"); code != 0 || s.stdout.String() != dir+"\n" {
			t.Errorf("exit code %d, printed %q: %s", code, &s.stdout, &s.stderr)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 3 {
		t.Errorf("there are %v, %v", files, err)
	}
	if code := s.hatch("rm", "-f", "web"); code != 0 {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after rm: %v", err)
	}
}

// A command and a shell are run by the agent: without ssh, a key or a terminal.
func TestRunPassesTheGuestsExitCodeAndCleansUp(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, tc := range []struct {
		args, stdin string
		tty         bool
		out         string
		code        int
		argv0       string
	}{
		{"run --rm minimal -- exit 42", "", false, "out\n", 42, "exit"},
		{"run --rm --no-network -- exit 0", "", true, "out\n", 0, "exit"},
		{"run --rm", "uname\n", false, "uname\n", 0, "sh"},
		{"run --rm", "\x03", true, "^C", 130, "sh"},
	} {
		t.Run(fmt.Sprint(tc.args, tc.tty), func(t *testing.T) {
			f := newFake(t)
			s := newSession(t, f)
			s.tty, s.stdin = tc.tty, strings.NewReader(tc.stdin)
			if code := s.hatch(strings.Fields(tc.args)...); code != tc.code || s.stdout.String() != tc.out {
				t.Errorf("exit code %d, printed %q: %s", code, &s.stdout, &s.stderr)
			}
			asked := <-f.execs.asked
			if asked.Command.Argv[0] != tc.argv0 || !asked.StdinOpen || (asked.TTY != nil) != (tc.tty && tc.argv0 == "sh") {
				t.Errorf("asked for %+v", asked)
			}
			if !f.called("DELETE /vms/vm_new000000009") {
				t.Errorf("calls: %q", f.calls)
			}
		})
	}
}

func TestRunGivesTheVMOwnKeys(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	writeFile(t, filepath.Join(s.env["HOME"], ".ssh/id_ed25519.pub"), "ssh-ed25519 AAAA me\n")
	if code := s.hatch("run", "-d", "minimal"); code != 0 {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if body := f.lastBody(t); body != `{"image_id":"img_minimal","ssh_authorized_keys":["ssh-ed25519 AAAA me"]}` {
		t.Errorf("sent %s", body)
	}
}

// ssh says no more than that the login was refused.
func TestARefusedLoginIsExplained(t *testing.T) {
	for data, want := range map[string]string{
		"#cloud-config\nusers:\n- name: eve\n":         "has users: without default",
		"#cloud-config\nusers: [bob, alice]\n":         "hatch ssh -l bob web",
		"#cloud-config\nusers: bob, default\n":         "",
		"#cloud-config\nusers: [default, {name: eve}]": "",
		"#cloud-config\nusers: []\n":                   "has an empty users:",
		"#cloud-config\nusers:\n":                      "",
		"#cloud-config\npackages: [git]\n":             "",
		"#!/bin/sh\nusers: [bob]\n":                    "",
		"":                                             "was created without an SSH key",
	} {
		t.Run(data, func(t *testing.T) {
			fakeSSH(t, "255")
			f := newFake(t)
			f.vms[0].UserData = data
			s := newSession(t, f)
			if code := s.hatch("ssh", "web"); code != 255 || !strings.Contains(s.stderr.String(), want) || (want == "") != (s.stderr.Len() == 0) {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
		})
	}
}

// A timeout may be longer than the server lets one request wait.
func TestRunTakesALongTimeout(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("run", "-d", "--timeout", "15m"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if !f.called("GET /vms/vm_new000000009/wait?for=ready&timeout=10m0s") {
		t.Errorf("calls: %q", f.calls)
	}
}

// A VM that runs one program may have no shell.
func TestRunShowsTheConsoleOfAProgram(t *testing.T) {
	f := newFake(t)
	f.vms[0].ID, f.vms[0].BootArgs = "vm_new000000009", "quiet hatch.entrypoint=x"
	s := newSession(t, f)
	s.stdin = strings.NewReader("exit\n")
	if code := s.hatch("run", "--rm"); code != 0 {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if s.stdout.String() != "login: " || !f.called("DELETE /vms/vm_new000000009") {
		t.Errorf("printed %q, calls %q", &s.stdout, f.calls)
	}
}

func TestRunRemovesAVMThatDoesNotGetReady(t *testing.T) {
	f := newFake(t)
	f.answer["GET /vms/vm_new000000009/wait"] = api.Problem{Status: 504, Error: "it took too long", Code: "wait_timeout"}
	s := newSession(t, f)
	if code := s.hatch("run", "--rm"); code != exitOwn {
		t.Errorf("exit code %d", code)
	}
	if !f.called("DELETE /vms/vm_new000000009") {
		t.Errorf("calls: %q", f.calls)
	}
}

func TestAnInterruptedRunRemovesItsVM(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx, f.onCreate = ctx, cancel
	if code := s.hatch("run", "--rm"); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	if !f.called("DELETE /vms/vm_new000000009") {
		t.Errorf("calls: %q", f.calls)
	}
	if len(f.keysSeen) != 2 || f.keysSeen[0] == "" || f.keysSeen[0] != f.keysSeen[1] {
		t.Errorf("idempotency keys: %q", f.keysSeen)
	}
}

// An interrupt says which VM it leaves, also if the server had not named it yet.
func TestAnInterruptNamesTheVM(t *testing.T) {
	for _, args := range []string{"run", "create", "run -d"} {
		t.Run(args, func(t *testing.T) {
			f := newFake(t)
			s := newSession(t, f)
			ctx, cancel := context.WithCancel(t.Context())
			s.ctx, f.onCreate = ctx, cancel
			code := s.hatch(strings.Fields(args)...)
			if want := "hatch: interrupted: vm_new000000009 was created, and stays\nhint: hatch rm -f vm_new000000009\n"; code != exitInterrupted || s.stderr.String() != want {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
		})
	}
}

func TestRunDetached(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("run", "-d", "--no-network"); code != 0 || s.stdout.String() != "vm_new000000009\n" {
		t.Errorf("exit code %d, printed %q", code, &s.stdout)
	}
}

func TestSSHUser(t *testing.T) {
	for name, tc := range map[string]struct {
		vm          api.VM
		asked, want string
		fails       bool
	}{
		"debian by default": {vm: api.VM{ImageID: "img_default"}, want: "debian"},
		"root in minimal":   {vm: api.VM{ImageID: "img_minimal"}, want: "root"},
		"label":             {vm: api.VM{ImageID: "img_minimal", Labels: map[string]string{userLabel: "eve"}}, want: "eve"},
		"flag over label":   {vm: api.VM{Labels: map[string]string{userLabel: "eve"}}, asked: "bob", want: "bob"},
		"an option":         {vm: api.VM{Labels: map[string]string{userLabel: "-oProxyCommand=x"}}, fails: true},
		"a second line":     {vm: api.VM{Labels: map[string]string{userLabel: "a\nProxyCommand x"}}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sshUser(tc.vm, tc.asked)
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestPrivateKeysAreNotSent(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	key := filepath.Join(s.env["HOME"], "id")
	writeFile(t, key, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
	if code := s.hatch("create", "--ssh-key", key); code != exitOwn || !strings.Contains(s.stderr.String(), "is a private key") {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	if len(f.bodies) > 0 {
		t.Errorf("sent %q", f.bodies)
	}
}

func TestCompletion(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	for args, want := range map[string]string{
		"__complete stop ":               "web\tvm_web000000001 running\n",
		"__complete create --image ":     "debian\timg_default",
		"__complete create --template ":  "small\ttpl_small0000001",
		"__complete restore web ":        "ready\tsnap_a00000000001 vm_web000000001\n",
		"__complete snapshot ls ":        "web\tvm_web000000001 running\n",
		"__complete create --snapshot ":  "ready\tsnap_a00000000001",
		"__complete key rm ":             "admin\tkey_admin0000001",
		"__complete ls -o ":              "jsonl\n",
		"__complete image build ":        "minimal\n",
		"__complete wait web --for clou": "cloud-init\n",
	} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Split(args, " ")...); code != 0 || !strings.Contains(s.stdout.String(), want) {
				t.Errorf("%s: exit code %d: %s", args, code, &s.stdout)
			}
		})
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			if code := s.hatch("completion", shell); code != 0 || s.stdout.Len() == 0 {
				t.Errorf("completion %s: exit code %d", shell, code)
			}
		})
	}
}

func TestManualPages(t *testing.T) {
	s := newSession(t, newFake(t))
	dir := filepath.Join(t.TempDir(), "man1")
	if code := s.hatch("man", dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	for page, want := range map[string]string{"hatch.1": "Exit codes: 0 done", "hatch-run.1": `.TH "HATCH-RUN" "1"`, "hatch-image-ls.1": "--no-headers"} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s does not have %q: %v\n%s", page, want, err, text)
		}
	}
}
