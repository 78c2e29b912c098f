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

// forkLimit bounds a fork of a Debian guest, which makes keys.
const forkLimit = 3 * time.Minute

// randomness draws from the kernel's, which comes as two lines.
const randomness = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /proc/sys/kernel/random/uuid"

// firstDraw is where a copy has what it drew as soon as it had a name of its own.
const firstDraw = "/run/first-draw"

// drawWhenRenamed starts a program that waits, in a guest and in each copy of it,
// until the guest is called something else. Then it draws. The original's waits
// until it is ended.
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
			t.Errorf("the original's program does not wait any more: %v", err)
		}
	}
}

// requireOwnDraws checks that no two guests have drawn the same: copies as soon as
// they were somebody else, the parent since then, and all of them later.
func (w *world) requireOwnDraws(t *testing.T, parent api.VM, copies []api.VM) {
	t.Helper()
	drew := map[string]string{}
	own := func(v api.VM, draws string) {
		lines := strings.Split(draws, "\n")
		if len(lines) != 2 || len(lines[0]) != 32 || len(lines[1]) != 36 {
			t.Fatalf("%s has drawn %q", v.Name, draws)
		}
		for _, one := range lines {
			if other := drew[one]; other != "" {
				t.Errorf("%s and %s have both drawn %s", other, v.Name, one)
			}
			drew[one] = v.Name
		}
	}
	own(parent, w.inside(t, parent, randomness))
	for _, v := range copies {
		w.awaitInside(t, v, "test -e "+firstDraw)
		own(v, w.inside(t, v, "cat "+firstDraw))
		own(v, w.inside(t, v, randomness))
	}
	own(parent, w.inside(t, parent, randomness))
}

// requireRightTime checks the clocks of guests.
func (w *world) requireRightTime(t *testing.T, vms ...api.VM) {
	t.Helper()
	for _, v := range vms {
		requireTime(t, func() string { return w.inside(t, v, "date +%s") })
	}
}

// testForkUnderSSH forks a whole Debian while somebody is logged in: the session
// goes on in the original, and the copies are other machines, for SSH as well, and
// one of them still the same after a boot.
func testForkUnderSSH(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	in, lines := w.login(t, v).echo(t)
	requireEcho(t, in, lines)
	w.inside(t, v, "rm /etc/ran-by-cloud-config")
	// By these files a copy knows that networkd has its interface.
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
		t.Fatalf("cannot fork: %v, failed are %+v", err, made.Failed)
	}
	took(t, "two forks of Debian, until they are themselves", began)
	requireEcho(t, in, lines)
	end()

	all := append(slices.Clone(made.VMs), v)
	requireDistinct(t, all)
	w.requireRightTime(t, all...)
	w.requireOwnDraws(t, v, made.VMs)
	w.requireDistinctInside(t, all)
	for _, c := range made.VMs {
		w.requirePlace(t, c)
		w.requireKey(t, c, signer)
	}
	w.delete(t, made.VMs[1].ID)
	w.requireSameAfterBoot(t, made.VMs[0])
	w.requireKey(t, made.VMs[0], signer)
}

// requireDistinctInside checks that no two Debian guests take themselves, or pass
// for SSH and DHCP, for the same.
func (w *world) requireDistinctInside(t *testing.T, vms []api.VM) {
	t.Helper()
	const keys, leases = "cut -d ' ' -f 2 /etc/ssh/ssh_host_*_key.pub", "grep -h CLIENTID /run/systemd/netif/leases/*"
	taken := map[string]string{}
	for _, v := range vms {
		said := []string{w.login(t, v).hostKey}
		for _, line := range []string{"hostname", "cat /etc/machine-id", keys, leases} {
			said = append(said, strings.Split(w.inside(t, v, line), "\n")...)
		}
		for _, one := range said {
			if other := taken[one]; other != "" || one == "" {
				t.Errorf("%s and %q both have %q", v.Name, other, one)
			}
			taken[one] = v.Name
		}
	}
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
