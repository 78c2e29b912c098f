//go:build system

package e2e

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// during starts do, calls kill after a while, and returns once both have returned.
func during(t *testing.T, after time.Duration, do func(context.Context), kill func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	<-time.After(after)
	kill()
	<-done
}

// The moments of kills: a create takes some 60 ms, a sleep 50, a wake 60, and the
// forks 150.
const (
	firstKill    = 2 * time.Millisecond
	lastKill     = 90 * time.Millisecond
	killInterval = 9 * time.Millisecond
)

// testProbeKilledDaemon kills hatchd during operations, and starts it again.
func testProbeKilledDaemon(t *testing.T, w *world) {
	w.killDuringEach(t, true, func(after time.Duration, do func(context.Context)) {
		during(t, after, do, func() { w.stopDaemon(t, syscall.SIGKILL) })
		w.startDaemon(t)
	})
}

// testProbeKilledVMM kills VMMs and jailers during operations.
func testProbeKilledVMM(t *testing.T, w *world) {
	w.killDuringEach(t, false, func(after time.Duration, do func(context.Context)) {
		during(t, after, do, func() {
			for _, p := range vmms(t) {
				_ = unix.Kill(p.pid, unix.SIGKILL) // it may have ended by itself
				p.awaitExit(t, normalReply)
			}
		})
	})
}

// killDuringEach calls kill for creates, sleeps, wakes, forks, snapshots and
// restores. Afterwards the state of each VM must be right, no guest may have gone
// back further than to its snapshot, and deleted VMs must leave nothing. Where
// guests survive the kill, each must run on.
func (w *world) killDuringEach(t *testing.T, survive bool, kill func(after time.Duration, do func(context.Context))) {
	t.Helper()
	outcomes := map[string]int{}
	for after := firstKill; after < lastKill; after += killInterval {
		before := w.traces(t)
		revive := func(v api.VM, count int) string {
			state := w.revive(t, v, count)
			if survive && state != api.StateRunning && state != api.StateSnapshotted {
				t.Errorf("after a kill at %s the VM is %s: its guest is lost", after, state)
			}
			return state
		}
		kill(after, func(ctx context.Context) { _, _ = w.client.CreateVM(ctx, w.probeBody(), client.CreateOptions{}) })
		for _, id := range w.ids(t) {
			v := w.stable(t, id)
			outcomes["create: "+v.State]++
			if v.State == api.StateRunning {
				w.await(t, v.ID, "ready", readyLimit)
			}
			w.delete(t, v.ID)
		}
		w.requireTraces(t, before)

		v := w.probe(t)
		count := w.count(t, v)
		kill(after, func(ctx context.Context) { _, _ = w.client.SleepVM(ctx, v.ID) })
		outcomes["sleep: "+revive(v, count)]++
		count = w.count(t, v)
		w.sleep(t, v)
		kill(after, func(ctx context.Context) { _, _ = w.client.WakeVM(ctx, v.ID) })
		outcomes["wake: "+revive(v, count)]++
		count = w.count(t, v)
		kill(2*after, func(ctx context.Context) { _, _ = w.client.ForkVM(ctx, v.ID, api.ForkVM{Count: new(2)}) })
		outcomes["fork: "+revive(v, count)]++
		w.deleteForks(t, v, outcomes)
		count = w.count(t, v)
		kill(after, func(ctx context.Context) { _, _ = w.client.CreateSnapshot(ctx, v.ID, api.CreateSnapshot{}) })
		outcomes["snapshot: "+revive(v, count)]++
		since := w.count(t, v)
		if _, err := w.client.CreateSnapshot(t.Context(), v.ID, api.CreateSnapshot{}); err != nil {
			t.Fatal(err)
		}
		kill(after, func(ctx context.Context) { _, _ = w.client.RestoreVM(ctx, v.ID, "") })
		outcomes["restore: "+revive(v, since)]++
		w.delete(t, v.ID)
		w.requireWholeSnapshots(t)
		w.requireTraces(t, before)
	}
	t.Logf("outcomes: %v", outcomes)
}

// deleteForks deletes all VMs but parent. Each must have its own identity; hatchd
// removes those that have not, once it has started again.
func (w *world) deleteForks(t *testing.T, parent api.VM, outcomes map[string]int) {
	t.Helper()
	for _, id := range w.ids(t) {
		if id == parent.ID {
			continue
		}
		v, gone := w.stableOrGone(t, id)
		if gone {
			outcomes["forked: removed"]++
			continue
		}
		outcomes["forked: "+v.State]++
		if v.State == api.StateRunning {
			w.await(t, v.ID, "agent", normalReply)
			w.requireProbeIdentity(t, v)
		}
		w.delete(t, id)
	}
}

// requireWholeSnapshots checks that every snapshot is durable, deletes them, and
// checks that no file of them is left.
func (w *world) requireWholeSnapshots(t *testing.T) {
	t.Helper()
	list, err := w.client.ListSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range list {
		if !snap.Durable {
			t.Errorf("there is %+v", snap)
		}
		if err := w.client.DeleteSnapshot(t.Context(), snap.ID); err != nil {
			t.Error(err)
		}
	}
	if err := sandbox.Poll(normalReply, func() (bool, error) { return len(names(t, w.data("snapshots"))) == 0, nil }); err != nil {
		t.Errorf("left of snapshots: %v", names(t, w.data("snapshots")))
	}
}

// ids lists the ids of all VMs.
func (w *world) ids(t *testing.T) (ids []string) {
	t.Helper()
	for v, err := range w.client.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	return ids
}

// stable returns a VM once no operation is under way, and its state matches its VMM.
func (w *world) stable(t *testing.T, id string) api.VM {
	t.Helper()
	v, gone := w.stableOrGone(t, id)
	if gone {
		t.Fatalf("%s is gone", id)
	}
	return v
}

// stableOrGone is stable for a VM that hatchd may remove.
func (w *world) stableOrGone(t *testing.T, id string) (v api.VM, gone bool) {
	t.Helper()
	err := sandbox.Poll(normalReply, func() (bool, error) {
		var err error
		if v, err = w.client.GetVM(t.Context(), id); client.IsNotFound(err) {
			gone = true
			return true, nil
		}
		if err != nil {
			return false, err
		}
		runs := slices.ContainsFunc(vmms(t), func(p process) bool { return p.runs(v) })
		return v.State != api.StateStarting && v.State != api.StateStopping && runs == (v.State == api.StateRunning), nil
	})
	if err != nil {
		t.Fatalf("%s stays %s: %v", id, v.State, err)
	}
	return v, gone
}

// revive makes a VM's guest answer again, and returns the state in which it found
// the VM. A guest that has not ended must run on.
func (w *world) revive(t *testing.T, v api.VM, count int) (state string) {
	t.Helper()
	state = w.stable(t, v.ID).State
	switch state {
	case api.StateRunning:
		w.await(t, v.ID, "agent", normalReply)
		w.requireProgress(t, v, count)
	case api.StateSnapshotted:
		w.wake(t, v)
		w.requireProgress(t, v, count)
	default:
		if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
			t.Fatalf("a VM in %s cannot be started: %v", state, err)
		}
		w.await(t, v.ID, "ready", readyLimit)
	}
	return state
}
