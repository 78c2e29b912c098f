//go:build system

package e2e

import (
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testIdle has a guest fall asleep by its policy while only its status is read, wakes it
// by a command, and sees that a command that waits keeps it awake.
func testIdle(t *testing.T, w *world) {
	const seconds = 5
	body := minimal()
	body.Idle = &api.Idle{TimeoutSeconds: new(int64(seconds))}
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	boot := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id")

	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(readyLimit); w.get(t, v.ID).State == api.StateRunning; <-tick.C { // reads only
		if time.Now().After(deadline) {
			t.Fatalf("it does not fall asleep: %+v", w.get(t, v.ID))
		}
	}
	w.await(t, v.ID, "snapshotted", normalReply)
	slept := w.get(t, v.ID)
	if slept.Sleep == nil || slept.LastActivity == nil || w.slept(t, v) != 1 {
		t.Errorf("asleep it is %+v (%s), %d times", slept, slept.StateReason, w.slept(t, v))
	}

	// An idle guest that is emulated on a busy host may use more CPU than its policy allows
	// for, so how long it takes to fall asleep is not fixed; that it is not slept while it is
	// used is.
	if got := w.inside(t, v, "sleep 15; cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, boot)
	}
	if w.slept(t, v) != 1 || w.wakes(t, v) != 1 {
		t.Errorf("it fell asleep %d times, and was woken %d times", w.slept(t, v), w.wakes(t, v))
	}
	if now := w.get(t, v.ID); now.LastActivity == nil || now.LastActivity.Cause != "exec" || now.LastActivity.Peer == "" {
		t.Errorf("its last activity is %+v", now.LastActivity)
	}
	w.await(t, v.ID, "snapshotted", readyLimit)
	if got := w.inside(t, v, "cat /proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, boot)
	}
}

// slept returns how often a VM fell asleep by its policy.
func (w *world) slept(t *testing.T, v api.VM) (times int) {
	t.Helper()
	for e, err := range w.client.ListEvents(t.Context(), client.EventOptions{VM: v.ID, Types: []string{"vm.slept"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Data["rule"] == "idle" {
			times++
		}
	}
	return times
}
