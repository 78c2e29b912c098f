//go:build system

package e2e

import (
	"compress/gzip"
	"encoding/base64"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// A guest gets user data byte for byte: with odd spaces, comments and a trailing
// line.
const (
	cloudConfig = "#cloud-config\n" +
		"# a comment that stays, ünïcode and all\n" +
		"write_files:\n" +
		"-   path: /etc/from-cloud-config\n" +
		"    content: \"applied\\n\"\n" +
		"ssh_authorized_keys: [ 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIEwgxMpOiC15yrKLeM2ib56DX8wcTNTHYXBYxrcT7sj of the user data' ]\n" +
		"runcmd:\n" +
		"  - [ sh, -c, 'echo ran > /etc/ran-by-cloud-config' ]\n\n"

	shellScript = "#!/bin/bash\necho \"Hello from $(hostname)\" > /etc/from-script\n"

	mimeBoundary = "==of-the-test=="
	mimeUserData = "Content-Type: multipart/mixed; boundary=\"" + mimeBoundary + "\"\nMIME-Version: 1.0\n\n" +
		"--" + mimeBoundary + "\nContent-Type: text/cloud-config; charset=\"utf-8\"\n\n" +
		"#cloud-config\nwrite_files:\n- path: /etc/from-mime-config\n  content: one\n\n" +
		"--" + mimeBoundary + "\nContent-Type: text/x-shellscript; charset=\"utf-8\"\n\n" +
		"#!/bin/sh\necho -n two > /etc/from-mime-script\n\n" +
		"--" + mimeBoundary + "--\n"
)

func testCloudConfig(t *testing.T, w *world) {
	began := time.Now()
	v := w.shared(t, alpha)
	took(t, "a Debian guest that boots, beside a warm one", began)
	if c := condition(v, api.ConditionCloudInit); c.Status != api.StatusTrue || c.Reason != "Done" {
		t.Errorf("cloud-init is %s: %s %s", c.Status, c.Reason, c.Message)
	}
	s := w.login(t, v)
	if got := s.run(t, "cat /etc/from-cloud-config"); got != "applied" {
		t.Errorf("write_files wrote %q", got)
	}
	if got := s.run(t, "cat /etc/ran-by-cloud-config"); got != "ran" {
		t.Errorf("runcmd wrote %q", got)
	}
	if got := s.run(t, "grep -c 'of the user data' .ssh/authorized_keys"); got != "1" {
		t.Errorf("the key of the user data occurs %q times", got) // the login was with another key
	}
	requireUserData(t, s, cloudConfig)
	if got := s.run(t, "hostname"); got != alpha {
		t.Errorf("the hostname is %q, want the VM's name", got)
	}
	if v := w.get(t, v.ID); v.UserData != cloudConfig {
		t.Errorf("the API shows user data that was not sent: %q", v.UserData)
	}
}

func testShellScript(t *testing.T, w *world) {
	v := w.shared(t, beta)
	s := w.login(t, v)
	if got := s.run(t, "cat /etc/from-script"); got != "Hello from "+betaHost {
		t.Errorf("the script wrote %q", got)
	}
	requireUserData(t, s, shellScript)
}

func testMIME(t *testing.T, w *world) {
	if err := w.warmDebian(); err != nil {
		t.Fatal(err)
	}
	packed := gzipped(t, mimeUserData) // bytes that are no text
	body := w.debian(packed)
	body.Name, body.ImageID = "gamma", warmImage
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	v = w.await(t, v.ID, "cloud-init", normalReply)
	s := w.login(t, v)
	if got := s.run(t, "cat /etc/from-mime-config /etc/from-mime-script"); got != "onetwo" {
		t.Errorf("the parts wrote %q", got)
	}
	requireUserData(t, s, packed)
	if v := w.get(t, v.ID); v.UserDataEncoding != api.EncodingBase64 || v.UserData != base64.StdEncoding.EncodeToString([]byte(packed)) {
		t.Errorf("the API shows user data that was not sent: %q, %q", v.UserDataEncoding, v.UserData)
	}
}

// testUnreadUserData has what cloud-init 22.4 counts as done: it only logs a warning.
func testUnreadUserData(t *testing.T, w *world) {
	if err := w.warmDebian(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ userData, want, logged string }{
		"bad YAML":          {"#cloud-config\nruncmd:\n  - [ls, secret\npackages: [x]\n", "line 3", "Failed loading yaml blob"},
		"a byte order mark": {"\ufeff" + cloudConfig, "byte order mark", "Unhandled non-multipart"},
	} {
		body := w.debian(c.userData)
		body.ImageID = warmImage
		v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
		cond := condition(v, api.ConditionCloudInit)
		if cond.Status != api.StatusFalse || cond.Reason != "Failed" || !strings.Contains(cond.Message, c.want) || strings.Contains(cond.Message, "secret") {
			t.Errorf("%s: cloud-init is %s: %s %s", name, cond.Status, cond.Reason, cond.Message)
		}
		if _, err := w.client.WaitVM(t.Context(), v.ID, "cloud-init", normalReply); !client.HasCode(err, "cloud_init_not_done") {
			t.Errorf("%s: waiting for cloud-init: %v", name, err)
		}
		if why := w.hatch(t, "why", v.ID); !strings.Contains(why, c.want) || !strings.Contains(why, "hatch logs --source cloud-init "+v.ID+"\n") {
			t.Errorf("%s: %s", name, why)
		}
		if log := w.hatch(t, "logs", "--source", "cloud-init", v.ID); !strings.Contains(log, c.logged) {
			t.Errorf("%s: the log does not tell: %s", name, log)
		}
		w.delete(t, v.ID)
	}
}

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var packed strings.Builder
	z := gzip.NewWriter(&packed)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.String()
}

// requireUserData compares the user data that cloud-init read with the one sent.
func requireUserData(t *testing.T, s *shell, sent string) {
	t.Helper()
	encoded := s.run(t, "sudo base64 -w0 /var/lib/cloud/instance/user-data.txt")
	got, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || string(got) != sent {
		t.Errorf("cloud-init got %q (%v), want %q", got, err, sent)
	}
}
