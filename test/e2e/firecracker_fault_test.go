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

// amid begins do, strikes after a while, and returns when both are over. What do
// says does not matter: what is true afterwards does.
func amid(t *testing.T, after time.Duration, do func(context.Context), strike func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	<-time.After(after)
	strike()
	<-done
}

// The moments at which something is killed: a create takes some 60 ms, a sleep
// 50, a wake 60, and the forks 150.
const (
	firstMoment = 2 * time.Millisecond
	lastMoment  = 90 * time.Millisecond
	moments     = 9 * time.Millisecond // between two
)

// testProbeDaemonDies kills hatchd while it is at work, and looks what the next
// one makes of it.
func testProbeDaemonDies(t *testing.T, w *world) {
	w.dieAmid(t, true, func(after time.Duration, do func(context.Context)) {
		amid(t, after, do, func() { w.stopDaemon(t, syscall.SIGKILL) })
		w.startDaemon(t)
	})
}

// testProbeVMMDies kills whatever runs a VM, or is about to.
func testProbeVMMDies(t *testing.T, w *world) {
	w.dieAmid(t, false, func(after time.Duration, do func(context.Context)) {
		amid(t, after, do, func() {
			for _, p := range vmms(t) {
				_ = unix.Kill(p.pid, unix.SIGKILL) // it may have ended meanwhile
				p.awaitExit(t, normalReply)
			}
		})
	})
}

// dieAmid lets die kill something amid creates, sleeps, wakes, forks, snapshots
// and restores. No VM may be in a state that is no longer true, no guest may have
// gone back further than to its snapshot, and nothing may be left of those that
// are deleted. Where guests outlive what is killed, each goes on.
func (w *world) dieAmid(t *testing.T, outlive bool, die func(after time.Duration, do func(context.Context))) {
	t.Helper()
	ends := map[string]int{}
	for after := firstMoment; after < lastMoment; after += moments {
		before := w.look(t)
		revive := func(v api.VM, count int) string {
			state := w.revive(t, v, count)
			if outlive && state != api.StateRunning && state != api.StateSnapshotted {
				t.Errorf("killed after %s, hatchd has left the VM %s: its guest is lost", after, state)
			}
			return state
		}
		die(after, func(ctx context.Context) { _, _ = w.client.CreateVM(ctx, w.probeBody(), client.CreateOptions{}) })
		for _, id := range w.ids(t) {
			v := w.settled(t, id)
			ends["create: "+v.State]++
			if v.State == api.StateRunning {
				w.await(t, v.ID, "ready", readyLimit)
			}
			w.delete(t, v.ID)
		}
		w.requireOnly(t, before)

		v := w.probe(t)
		count := w.count(t, v)
		die(after, func(ctx context.Context) { _, _ = w.client.SleepVM(ctx, v.ID) })
		ends["sleep: "+revive(v, count)]++
		count = w.count(t, v)
		w.sleep(t, v)
		die(after, func(ctx context.Context) { _, _ = w.client.WakeVM(ctx, v.ID) })
		ends["wake: "+revive(v, count)]++
		count = w.count(t, v)
		die(2*after, func(ctx context.Context) { _, _ = w.client.ForkVM(ctx, v.ID, api.ForkVM{Count: new(2)}) })
		ends["fork: "+revive(v, count)]++
		w.deleteForks(t, v, ends)
		count = w.count(t, v)
		die(after, func(ctx context.Context) { _, _ = w.client.CreateSnapshot(ctx, v.ID, api.CreateSnapshot{}) })
		ends["snapshot: "+revive(v, count)]++
		since := w.count(t, v)
		if _, err := w.client.CreateSnapshot(t.Context(), v.ID, api.CreateSnapshot{}); err != nil {
			t.Fatal(err)
		}
		die(after, func(ctx context.Context) { _, _ = w.client.RestoreVM(ctx, v.ID, "") })
		ends["restore: "+revive(v, since)]++
		w.delete(t, v.ID)
		w.requireWholeSnapshots(t)
		w.requireOnly(t, before)
	}
	t.Logf("what became of the VMs: %v", ends)
}

// deleteForks deletes all VMs but one. None may take itself for another. Those that
// have not become themselves hatchd removes, once it has started again.
func (w *world) deleteForks(t *testing.T, parent api.VM, ends map[string]int) {
	t.Helper()
	for _, id := range w.ids(t) {
		if id == parent.ID {
			continue
		}
		v, gone := w.settledOrGone(t, id)
		if gone {
			ends["forked: removed"]++
			continue
		}
		ends["forked: "+v.State]++
		if v.State == api.StateRunning {
			w.await(t, v.ID, "agent", normalReply)
			w.requireProbeItself(t, v)
		}
		w.delete(t, id)
	}
}

// requireWholeSnapshots checks that all there is of snapshots counts, and deletes
// it.
func (w *world) requireWholeSnapshots(t *testing.T) {
	t.Helper()
	list, err := w.client.ListSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if !one.Durable {
			t.Errorf("there is %+v", one)
		}
		if err := w.client.DeleteSnapshot(t.Context(), one.ID); err != nil {
			t.Error(err)
		}
	}
	if err := sandbox.Poll(normalReply, func() (bool, error) { return len(names(t, w.data("snapshots"))) == 0, nil }); err != nil {
		t.Errorf("left of snapshots: %v", names(t, w.data("snapshots")))
	}
}

// ids lists every VM there is.
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

// settled returns a VM once nothing is under way with it, and hatchd has seen
// what is true of its VMM.
func (w *world) settled(t *testing.T, id string) api.VM {
	t.Helper()
	v, gone := w.settledOrGone(t, id)
	if gone {
		t.Fatalf("%s is gone", id)
	}
	return v
}

// settledOrGone is settled for a VM that hatchd may remove meanwhile.
func (w *world) settledOrGone(t *testing.T, id string) (v api.VM, gone bool) {
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
		lives := slices.ContainsFunc(vmms(t), func(p process) bool { return p.runs(v) })
		return v.State != api.StateStarting && v.State != api.StateStopping && lives == (v.State == api.StateRunning), nil
	})
	if err != nil {
		t.Fatalf("%s stays %s: %v", id, v.State, err)
	}
	return v, gone
}

// revive brings a VM back to where its guest answers, and returns the state
// that it found. A guest that has not ended must go on where it was.
func (w *world) revive(t *testing.T, v api.VM, count int) (state string) {
	t.Helper()
	state = w.settled(t, v.ID).State
	switch state {
	case api.StateRunning:
		w.await(t, v.ID, "agent", normalReply)
		w.goesOn(t, v, count)
	case api.StateSnapshotted:
		w.wake(t, v)
		w.goesOn(t, v, count)
	default:
		if _, err := w.client.StartVM(t.Context(), v.ID); err != nil {
			t.Fatalf("a VM in %s cannot be started: %v", state, err)
		}
		w.await(t, v.ID, "ready", readyLimit)
	}
	return state
}
