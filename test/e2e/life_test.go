//go:build system

package e2e

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// noticeLimit is how long hatchd may take to see the end of a VMM.
const noticeLimit = 2 * time.Second

func testPause(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	s := w.login(t, v)
	boot := s.bootID(t)
	paused, err := w.client.PauseVM(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if paused.State != api.StatePaused {
		t.Errorf("after pause the state is %s", paused.State)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _, _ = s.client.SendRequest("keepalive@hatch", true, nil) // a refusal is an answer, too
	}()
	select {
	case <-answered:
		t.Error("a paused guest answers")
	case <-time.After(500 * time.Millisecond):
	}
	resumed, err := w.client.ResumeVM(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if resumed.State != api.StateRunning {
		t.Errorf("after resume the state is %s", resumed.State)
	}
	<-answered
	if s.bootID(t) != boot {
		t.Error("the guest has rebooted")
	}
}

// testLongPause pauses a guest until the session with its agent is lost, which takes
// longer than the clock of a guest may be wrong.
func testLongPause(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if _, err := w.client.PauseVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	err := sandbox.Poll(stopLimit, func() (bool, error) {
		return condition(w.get(t, v.ID), api.ConditionAgentReady).Status != api.StatusTrue, nil
	})
	if err != nil {
		t.Fatalf("the agent of a paused guest is ready: %v", err)
	}
	if _, err := w.client.ResumeVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	earliest := time.Now().Unix() - 1
	now, err := strconv.ParseInt(w.inside(t, v, "date +%s"), 10, 64)
	if latest := time.Now().Unix() + 1; err != nil || now < earliest || now > latest {
		t.Errorf("the guest's clock shows %d (%v), want %d to %d", now, err, earliest, latest)
	}
	w.delete(t, v.ID)
}

// testStopDuringBoot stops a guest before anything in it listens.
func testStopDuringBoot(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{})
	began := time.Now()
	stopped, err := w.client.StopVM(t.Context(), v.ID)
	took(t, "stop of a guest that boots", began)
	if err != nil || stopped.State != api.StateStopped || stopped.StateReason != "stopped on request" {
		t.Errorf("it is %s (%s), %v", stopped.State, stopped.StateReason, err)
	}
	w.delete(t, v.ID)
}

func testStopStart(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	s := w.login(t, v)
	boot, hostKey := s.bootID(t), s.hostKey
	s.run(t, "echo kept | sudo tee /var/tmp/kept >/dev/null && sync")
	p := vmm(t, v)

	began := time.Now()
	stopped, err := w.client.StopVM(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	took(t, "graceful stop of a Debian guest", began)
	if stopped.State != api.StateStopped {
		t.Errorf("after stop the state is %s", stopped.State)
	}
	for _, other := range vmms(t) {
		if other.pid == p.pid {
			t.Error("stop has returned, but the VMM runs")
		}
	}
	if connectsFromHere("127.0.0.1", v.SSHPort) {
		t.Error("the SSH port of a stopped VM is open")
	}
	if again, err := w.client.StopVM(t.Context(), v.ID); err != nil || again.State != api.StateStopped {
		t.Errorf("stopping a stopped VM: %s, %v", again.State, err)
	}

	began = time.Now()
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	started := w.await(t, v.ID, "ready", readyLimit)
	took(t, "start until ready again", began)
	if started.GuestIP != v.GuestIP || started.SSHPort != v.SSHPort || started.GuestMAC != v.GuestMAC {
		t.Errorf("after start it has %s, port %d, %s; before, %s, port %d, %s",
			started.GuestIP, started.SSHPort, started.GuestMAC, v.GuestIP, v.SSHPort, v.GuestMAC)
	}
	s = w.login(t, started)
	if got := s.run(t, "cat /var/tmp/kept"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	if s.hostKey != hostKey {
		t.Error("the SSH host key has changed")
	}
	if s.bootID(t) == boot {
		t.Error("the guest has not rebooted: the test shows nothing")
	}
	if got := s.run(t, "journalctl --list-boots -q | wc -l"); got == "0" {
		t.Error("the journal knows no boot")
	}
}

func testBeginDuringReboot(t *testing.T, w *world) {
	w.beginDuringReboot(t, w.shared(t, alpha), "a command", func() {})
}

func testBeginDuringRebootMinimal(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	w.beginDuringReboot(t, v, "a command", func() {})
	w.beginDuringReboot(t, v, "a wait for the agent", func() { w.await(t, v.ID, "agent", readyLimit) })
	w.beginDuringReboot(t, v, "a file", func() {
		if _, err := w.client.WriteFile(t.Context(), v.ID, "/run/begun", strings.NewReader("x"), client.WriteOptions{}); err != nil {
			t.Errorf("a file: %v", err)
		}
		w.inside(t, v, "cat /run/begun")
	})
	w.delete(t, v.ID)
}

// beginDuringReboot reboots a guest, and begins something just after that: it must not be
// done in the boot that ends.
func (w *world) beginDuringReboot(t *testing.T, v api.VM, what string, begin func()) {
	t.Helper()
	const readBoot = "cat /proc/sys/kernel/random/boot_id"
	w.await(t, v.ID, "ready", readyLimit) // with its init
	boot := w.inside(t, v, readBoot)
	w.inside(t, v, "reboot")
	began := time.Now()
	begin()
	if w.inside(t, v, readBoot) == boot {
		t.Errorf("%s was done in the boot that ended", what)
	}
	took(t, what+" during a reboot", began)
}

// reboot reboots a Debian guest from inside, and waits until SSH works again.
func (w *world) reboot(t *testing.T, v api.VM) {
	t.Helper()
	s := w.login(t, v)
	boot := s.bootID(t)
	s.run(t, "sudo systemd-run -q --no-block systemctl reboot")
	began := time.Now()
	now := boot
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		if id, err := w.tryBootID(v); err == nil {
			now = id
		}
		return now != boot, nil
	})
	if err != nil {
		t.Fatalf("the guest has not rebooted: %v; console:\n%s", err, w.console(t.Context(), v.ID))
	}
	took(t, "from the reboot command until a login", began)
}

// tryBootID logs in and returns the boot id; it fails while the guest reboots.
func (w *world) tryBootID(v api.VM) (string, error) {
	s, err := w.tryLogin(v)
	if err != nil {
		return "", err
	}
	hangUp := time.AfterFunc(attemptLimit, func() { _ = s.client.Close() })
	defer func() { hangUp.Stop(); _ = s.client.Close() }()
	session, err := s.client.NewSession()
	if err != nil {
		return "", err
	}
	out, err := session.Output("cat /proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(out)), err
}

func testPoweroff(t *testing.T, w *world) {
	v := w.shared(t, beta)
	p := vmm(t, v)
	w.login(t, v).run(t, "sudo systemd-run -q --no-block systemctl poweroff")
	p.awaitExit(t, stopLimit)
	began := time.Now()
	off := w.await(t, v.ID, "stopped", noticeLimit)
	took(t, "from the end of the VMM until the state is stopped", began)
	if !strings.Contains(off.StateReason, "guest") {
		t.Errorf("the reason does not name the guest: %q", off.StateReason)
	}
	if connectsFromHere("127.0.0.1", v.SSHPort) {
		t.Error("the SSH port is still open")
	}
}

func testVMMKilled(t *testing.T, w *world) {
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	vmm(t, v).kill(t)
	dead := w.await(t, v.ID, "error", noticeLimit)
	if dead.StateReason == "" {
		t.Error("the VM is in error without a reason")
	}
	t.Logf("the reason: %s", dead.StateReason)
	if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
		t.Fatalf("a VM in error cannot be started: %v", err)
	}
	w.await(t, v.ID, "agent", readyLimit)
}

func testDelete(t *testing.T, w *world) {
	before := w.traces(t)
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	during := w.traces(t)
	for _, want := range []string{"process ", "interface " + v.TapName, "directory " + v.ID, "listening port"} {
		if !strings.Contains(strings.Join(minus(during, before), "\n"), want) {
			t.Errorf("a running VM has no trace %q: the test shows nothing\n%s", want, strings.Join(minus(during, before), "\n"))
		}
	}
	p := vmm(t, v)
	if p.uid < 900000 {
		t.Errorf("the VMM runs as user %d, want one of its own", p.uid)
	}
	began := time.Now()
	w.delete(t, v.ID)
	took(t, "delete", began)
	w.requireTraces(t, before)
	if _, err := w.client.GetVM(t.Context(), v.ID); !client.IsNotFound(err) {
		t.Errorf("a deleted VM is found: %v", err)
	}
	if err := w.client.DeleteVM(t.Context(), v.ID); !client.IsNotFound(err) {
		t.Errorf("a second delete answers %v, want 404", err)
	}
	body := minimal()
	body.GuestIP = v.GuestIP
	again := w.create(t, body, client.CreateOptions{})
	if again.GuestIP != v.GuestIP {
		t.Errorf("the address of a deleted VM is not free: %s", again.GuestIP)
	}
	w.delete(t, again.ID)
	w.requireTraces(t, before)
}

func testNoNetwork(t *testing.T, w *world) {
	before := w.traces(t)
	body := minimal()
	body.EnableNetwork = new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if v.EnableNetwork || v.GuestIP != "" || v.GuestMAC != "" || v.TapName != "" || v.SSHPort != 0 {
		t.Errorf("a VM without network has one: %+v", v)
	}
	if c := condition(v, api.ConditionNetworkReady); c.Status != api.StatusFalse {
		t.Errorf("its network is %s (%s)", c.Status, c.Reason)
	}
	if c := condition(v, api.ConditionAgentReady); c.Status != api.StatusTrue {
		t.Errorf("its agent is %s (%s)", c.Status, c.Reason)
	}
	for _, line := range minus(w.traces(t), before) {
		kind, _, _ := strings.Cut(line, " ")
		if !slices.Contains([]string{"process", "directory", "cgroup", "memory", "jail"}, kind) {
			t.Errorf("it has on the host: %s", line)
		}
	}
	if p := vmm(t, v); strings.Contains(p.command, "virtio-net") {
		t.Errorf("its VMM has a network device: %s", p.command)
	}
}
