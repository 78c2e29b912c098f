//go:build system

package e2e

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
)

// forkLimit is for a fork of a Debian guest, which generates keys.
const forkLimit = 3 * time.Minute

// randomness prints two random values of the kernel, a line each.
const randomness = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /proc/sys/kernel/random/uuid"

// firstDraw is the file with the values that a clone drew as soon as it had its own
// name.
const firstDraw = "/run/first-draw"

// drawWhenRenamed starts a program that draws random values once the hostname
// changes: in a guest, and so in each clone of it. The original's waits for end.
func (w *world) drawWhenRenamed(t *testing.T, v api.VM) (end func()) {
	t.Helper()
	const waiting = "/run/waits-to-draw"
	program, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: "was=$(hostname); touch " + waiting +
		"; while read now </proc/sys/kernel/hostname && [ $now = $was ]; do sleep 0.1; done" +
		"; (" + randomness + ") >" + firstDraw + ".new; mv " + firstDraw + ".new " + firstDraw}})
	if err != nil {
		t.Fatal(err)
	}
	w.awaitInside(t, v, "test -e "+waiting)
	return func() {
		t.Helper()
		if err := w.client.DeleteExec(t.Context(), v.ID, program.ID); err != nil {
			t.Errorf("the original's program has ended: %v", err)
		}
	}
}

// requireOwnDraws checks that no two guests have drawn the same values: clones as
// soon as they had their own name, the parent since the fork, and all of them now.
func (w *world) requireOwnDraws(t *testing.T, parent api.VM, clones []api.VM) {
	t.Helper()
	drew := map[string]string{}
	own := func(v api.VM, draws string) {
		lines := strings.Split(draws, "\n")
		if len(lines) != 2 || len(lines[0]) != 32 || len(lines[1]) != 36 {
			t.Fatalf("%s has drawn %q", v.Name, draws)
		}
		for _, value := range lines {
			if other := drew[value]; other != "" {
				t.Errorf("%s and %s have both drawn %s", other, v.Name, value)
			}
			drew[value] = v.Name
		}
	}
	own(parent, w.inside(t, parent, randomness))
	for _, v := range clones {
		w.awaitInside(t, v, "test -e "+firstDraw)
		own(v, w.inside(t, v, "cat "+firstDraw))
		own(v, w.inside(t, v, randomness))
	}
	own(parent, w.inside(t, parent, randomness))
}

// requireRightTime checks the clocks of several guests.
func (w *world) requireRightTime(t *testing.T, vms ...api.VM) {
	t.Helper()
	for _, v := range vms {
		requireTime(t, func() string { return w.inside(t, v, "date +%s") })
	}
}

// testForkUnderSSH forks a Debian guest under an SSH session: the session continues
// in the original, the clones are other machines, for SSH as well, and a clone keeps
// its identity over a reboot.
func testForkUnderSSH(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	in, lines := w.login(t, v).echo(t)
	requireEcho(t, in, lines)
	w.inside(t, v, "rm /etc/ran-by-cloud-config")
	// By these files a clone knows that networkd manages its interface.
	w.inside(t, v, "test -L /run/systemd/units/invocation:systemd-networkd.service && grep -q ^NETWORK_FILE= /run/systemd/netif/links/*")
	end := w.drawWhenRenamed(t, v)
	ctx, cancel := context.WithTimeout(t.Context(), forkLimit)
	defer cancel()
	began := time.Now()
	_, signer, key := newKey(t)
	made, err := w.client.ForkVM(ctx, v.ID, api.ForkVM{Count: new(2), Name: "alpha-fork", SSHAuthorizedKeys: []string{key}})
	for _, c := range made.VMs {
		t.Cleanup(func() { w.cleanUp(t, c.ID) })
	}
	if err != nil || len(made.VMs) != 2 {
		t.Fatalf("cannot fork: %v; failed are %+v", err, made.Failed)
	}
	took(t, "two forks of Debian, until they have their identity", began)
	requireEcho(t, in, lines)
	end()

	all := append(slices.Clone(made.VMs), v)
	requireDistinct(t, all)
	w.requireRightTime(t, all...)
	w.requireOwnDraws(t, v, made.VMs)
	w.requireDistinctInside(t, all)
	w.requireCertificates(t, all...)
	for _, c := range made.VMs {
		w.requireNetwork(t, c)
	}
	w.delete(t, made.VMs[1].ID)
	w.requireKey(t, made.VMs[0], signer)
	w.requireSameAfterBoot(t, made.VMs[0])
	w.requireKey(t, made.VMs[0], signer)
}

// requireDistinctInside checks that no two Debian guests have the same hostname,
// machine id, SSH host key or DHCP client id.
func (w *world) requireDistinctInside(t *testing.T, vms []api.VM) {
	t.Helper()
	const keys, leases = "cut -d ' ' -f 2 /etc/ssh/ssh_host_*_key.pub", "grep -h CLIENTID /run/systemd/netif/leases/*"
	owner := map[string]string{}
	for _, v := range vms {
		said := []string{w.login(t, v).hostKey}
		for _, line := range []string{"hostname", "cat /etc/machine-id", keys, leases} {
			said = append(said, strings.Split(w.inside(t, v, line), "\n")...)
		}
		for _, value := range said {
			if other := owner[value]; other != "" || value == "" {
				t.Errorf("%s and %q both have %q", v.Name, other, value)
			}
			owner[value] = v.Name
		}
	}
}

// requireKey logs in with the key that a clone was given, once cloud-init is done,
// and checks that the original's user data was not applied again.
func (w *world) requireKey(t *testing.T, v api.VM, signer ssh.Signer) {
	t.Helper()
	if c := condition(w.await(t, v.ID, "cloud-init", readyLimit), api.ConditionCloudInit); c.Status != api.StatusTrue {
		t.Errorf("cloud-init is %s: %s %s", c.Status, c.Reason, c.Message)
	}
	original := w.signer
	w.signer = signer
	defer func() { w.signer = original }()
	if got := w.login(t, v).run(t, "cat /etc/ran-by-cloud-config 2>/dev/null; true"); got != "" {
		t.Errorf("its user data was applied again: %q", got)
	}
}

// requireSameAfterBoot reboots a clone: it keeps its identity, and the user data
// that was applied to its original is not applied again.
func (w *world) requireSameAfterBoot(t *testing.T, v api.VM) {
	t.Helper()
	const identity = "hostname; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_*_key.pub; ls /etc/ran-by-cloud-config 2>&1"
	before := w.inside(t, v, identity+" || true")
	if !strings.Contains(before, "No such file") {
		t.Fatalf("before a reboot it is %q", before)
	}
	w.reboot(t, v)
	if now := w.await(t, v.ID, "ready", readyLimit); now.State != api.StateRunning {
		t.Errorf("after a reboot the state is %s", now.State)
	}
	if got := w.inside(t, v, identity+" || true"); got != before {
		t.Errorf("after a reboot it is %q, before %q", got, before)
	}
	w.requireNetwork(t, v)
}

// requireNetwork checks that a Debian guest has its VM's name, MAC and address, and
// reaches the internet.
func (w *world) requireNetwork(t *testing.T, v api.VM) {
	t.Helper()
	const network = "hostname; cat /sys/class/net/eth0/address; ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d ' ' -f 4 | cut -d / -f 1"
	if got, want := w.inside(t, v, network), v.Name+"\n"+strings.ToLower(v.GuestMAC)+"\n"+v.GuestIP; got != want {
		t.Errorf("inside it is %q, outside %q", got, want)
	}
	if s := w.login(t, v); !s.connects(t, internetAddr, 80) {
		t.Errorf("%s has no network", v.Name)
	}
}

// echo starts a session that returns each line.
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
		t.Fatalf("the session returns %q, %v", line, err)
	}
}
