//go:build system

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func testAdoptAfterKill(t *testing.T, w *world) { w.restartUnderGuests(t, syscall.SIGKILL) }

func testAdoptAfterStop(t *testing.T, w *world) { w.restartUnderGuests(t, syscall.SIGTERM) }

// restartUnderGuests ends hatchd while guests run, and starts it again.
func (w *world) restartUnderGuests(t *testing.T, signal syscall.Signal) {
	t.Helper()
	a, b := w.shared(t, alpha), w.shared(t, beta)
	boots := map[string]string{a.ID: w.login(t, a).bootID(t), b.ID: w.login(t, b).bootID(t)}
	pids := map[string]int{a.ID: vmm(t, a).pid, b.ID: vmm(t, b).pid}
	before := w.traces(t)

	w.stopDaemon(t, signal)
	if got := len(vmms(t)); got != 2 {
		t.Fatalf("%d VMMs run without hatchd, want 2", got)
	}
	if connectsFromHere("127.0.0.1", a.SSHPort) {
		t.Error("the SSH port is open without hatchd")
	}

	began := time.Now()
	w.startDaemon(t)
	for _, v := range []api.VM{a, b} {
		now := w.await(t, v.ID, "ready", normalReply)
		if now.State != api.StateRunning || now.GuestIP != v.GuestIP || now.SSHPort != v.SSHPort {
			t.Errorf("%s is %s with %s and port %d; before, it had %s and port %d",
				v.Name, now.State, now.GuestIP, now.SSHPort, v.GuestIP, v.SSHPort)
		}
		if got := vmm(t, v).pid; got != pids[v.ID] {
			t.Errorf("%s has process %d, before it was %d", v.Name, got, pids[v.ID])
		}
	}
	took(t, "from the start of hatchd until both guests are ready", began)
	for _, v := range []api.VM{a, b} {
		s := w.login(t, v)
		if got := s.bootID(t); got != boots[v.ID] {
			t.Errorf("%s has rebooted", v.Name)
		}
		if !s.connects(t, internetAddr, 80) {
			t.Errorf("%s has lost the internet", v.Name)
		}
	}
	if s := w.login(t, a); s.connects(t, b.GuestIP, 22) {
		t.Error("after adoption, a guest reaches another")
	}
	w.requireTraces(t, before)
}

// testDiedMeanwhile kills a VMM while hatchd does not run.
func testDiedMeanwhile(t *testing.T, w *world) {
	before := w.traces(t)
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	w.stopDaemon(t, syscall.SIGKILL)
	p := vmm(t, v)
	p.kill(t)
	p.awaitExit(t, normalReply)
	w.startDaemon(t)
	dead := w.await(t, v.ID, "stopped", normalReply) // not error: hatchd cannot know how it ended
	if dead.StateReason == "" {
		t.Error("it is stopped without a reason")
	}
	t.Logf("the reason: %s", dead.StateReason)
	if strings.Contains(strings.Join(w.traces(t), "\n"), "interface "+v.TapName) {
		t.Errorf("it still has the TAP %s", v.TapName)
	}
	w.delete(t, v.ID)
	w.requireTraces(t, before)
}
