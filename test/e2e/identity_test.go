//go:build system

package e2e

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
)

// forkLimit bounds a fork of a Debian guest, which makes keys.
const forkLimit = 3 * time.Minute

// randomness draws from the kernel's.
const randomness = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid"

// testForkUnderSSH forks a whole Debian while somebody is logged in: the session
// goes on in the original, and the copy is another machine, for SSH as well, and
// still the same after a boot.
func testForkUnderSSH(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	in, lines := w.login(t, v).echo(t)
	requireEcho(t, in, lines)
	w.inside(t, v, "rm /etc/ran-by-cloud-config")
	ctx, cancel := context.WithTimeout(t.Context(), forkLimit)
	defer cancel()
	began := time.Now()
	_, signer, key := newKey(t)
	made, err := w.client.ForkVM(ctx, v.ID, api.ForkVM{Name: "alpha-fork", SSHAuthorizedKeys: []string{key}})
	if err != nil || len(made.VMs) != 1 {
		t.Fatalf("cannot fork: %v, %+v", err, made)
	}
	took(t, "a fork of Debian, until it is itself", began)
	forked := made.VMs[0]
	t.Cleanup(func() { w.cleanUp(t, forked.ID) })
	requireEcho(t, in, lines)

	both := []api.VM{v, forked}
	requireDistinct(t, both)
	w.requirePlace(t, forked)
	requireTime(t, func() string { return w.inside(t, forked, "date +%s") })
	for what, line := range map[string]string{
		"randomness": randomness, "machine id": "cat /etc/machine-id", "host keys' file": "cat /etc/ssh/ssh_host_*_key.pub", "DHCP client id": "grep CLIENTID /run/systemd/netif/leases/*",
	} {
		if a, b := w.inside(t, v, line), w.inside(t, forked, line); a == b {
			t.Errorf("both have the %s %q", what, a)
		}
	}
	if a, b := w.login(t, v).hostKey, w.login(t, forked).hostKey; a == b {
		t.Errorf("both have the host key %s", a)
	}
	w.requireKey(t, forked, signer)
	w.requireSameAfterBoot(t, forked)
	w.requireKey(t, forked, signer)
}

// requireKey logs in with a key that a copy was given, once cloud-init is
// through, and checks that the original's user data was not applied again.
func (w *world) requireKey(t *testing.T, v api.VM, signer ssh.Signer) {
	t.Helper()
	if c := condition(w.await(t, v.ID, "cloud-init", readyLimit), api.ConditionCloudInit); c.Status != api.StatusTrue {
		t.Errorf("cloud-init is %s: %s %s", c.Status, c.Reason, c.Message)
	}
	theirs := w.signer
	w.signer = signer
	defer func() { w.signer = theirs }()
	if got := w.login(t, v).run(t, "cat /etc/ran-by-cloud-config 2>/dev/null; true"); got != "" {
		t.Errorf("its user data was applied again, which says %q", got)
	}
}

// requireSameAfterBoot reboots a copy: it stays who it is, and the user data
// that was applied before it was copied is not applied again.
func (w *world) requireSameAfterBoot(t *testing.T, v api.VM) {
	t.Helper()
	const look = "hostname; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_*_key.pub; ls /etc/ran-by-cloud-config 2>&1"
	before := w.inside(t, v, look+" || true")
	if !strings.Contains(before, "No such file") {
		t.Fatalf("before a reboot it is %q", before)
	}
	w.reboot(t, v)
	w.await(t, v.ID, "ready", readyLimit)
	if got := w.inside(t, v, look+" || true"); got != before {
		t.Errorf("after a reboot it is %q, before %q", got, before)
	}
	w.requirePlace(t, v)
}

// requirePlace checks that a Debian guest has its VM's name and place on the
// network, and that its packets get out and back.
func (w *world) requirePlace(t *testing.T, v api.VM) {
	t.Helper()
	const look = "hostname; cat /sys/class/net/eth0/address; ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d ' ' -f 4 | cut -d / -f 1"
	if got, want := w.inside(t, v, look), v.Name+"\n"+strings.ToLower(v.GuestMAC)+"\n"+v.GuestIP; got != want {
		t.Errorf("inside it is %q, outside %q", got, want)
	}
	if s := w.login(t, v); !s.connects(t, internetAddr, 80) {
		t.Errorf("%s has no network", v.Name)
	}
}

// echo begins a session that says each line again.
func (s *shell) echo(t *testing.T) (in io.Writer, lines *bufio.Reader) {
	t.Helper()
	session, err := s.client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	stdin, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("cat"); err != nil {
		t.Fatal(err)
	}
	return stdin, bufio.NewReader(stdout)
}

func requireEcho(t *testing.T, in io.Writer, lines *bufio.Reader) {
	t.Helper()
	if _, err := io.WriteString(in, "still here\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "still here\n" {
		t.Fatalf("the session says %q, %v", line, err)
	}
}
