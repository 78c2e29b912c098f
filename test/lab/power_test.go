//go:build lab

package lab

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// shutdownLimit is far below the 90 s after which systemd kills what does not end.
const shutdownLimit = time.Minute

// testHostRestart shuts the host down under its VMs, and starts it again: those that
// ran go on where they were, the others stay as their owner left them.
func testHostRestart(t *testing.T, w *world) {
	boots := map[string]string{}
	for _, vmm := range []string{"firecracker", "qemu"} {
		v := w.create(t, "running-"+vmm, vmm)
		w.inside(t, v.ID, "mkdir /m && mount -t tmpfs m /m && echo kept >/m/memory && echo kept >/disk")
		boots[v.ID] = w.bootID(t, v.ID)
	}
	asleep, stopped := w.create(t, "asleep", "auto"), w.create(t, "stopped", "auto")
	w.do(t, "sleep", asleep.ID, api.StateSnapshotted, w.client.SleepVM)
	w.do(t, "stop", stopped.ID, api.StateStopped, w.client.StopVM)

	for id, want := range map[string]string{asleep.ID: api.StateSnapshotted, stopped.ID: api.StateStopped} {
		defer func() {
			if v, err := w.client.GetVM(t.Context(), id); err != nil || v.State != want {
				t.Errorf("%s is %s (%s), %v, not %s", v.Name, v.State, v.StateReason, err, want)
			}
			w.remove(t, id)
		}()
	}
	lasted, err := w.host.ShutDown(t.Context(), 2*shutdownLimit)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the host shut down within %.1f s", lasted.Seconds())
	if lasted > shutdownLimit {
		t.Errorf("the host needs %s to shut down", lasted)
	}
	w.boot(t)
	w.connect(t)
	for id, boot := range boots {
		w.await(t, id, "ready")
		w.requireMemory(t, id, boot)
		w.remove(t, id)
	}
}

// testPowerCut cuts the host's power under a running VM: it boots again when the host
// is back, with all that it had synced.
func testPowerCut(t *testing.T, w *world) {
	v := w.create(t, "cut", "auto")
	boot := w.bootID(t, v.ID)
	w.inside(t, v.ID, "echo kept >/disk && sync")
	w.cutPower(t)
	w.await(t, v.ID, "ready")
	if got := w.inside(t, v.ID, "cat /disk"); got != "kept" || w.bootID(t, v.ID) == boot {
		t.Errorf("after the power cut its disk has %q", got)
	}
	w.remove(t, v.ID)
}

// cutPower cuts the host's power and boots it again.
func (w *world) cutPower(t *testing.T) {
	t.Helper()
	if err := w.host.CutPower(); err != nil {
		t.Fatal(err)
	}
	w.boot(t)
	w.connect(t)
}

// moments is how many times each operation is cut, spread over its duration.
var moments = flag.Int("moments", 10, "power cuts in each operation")

// operation is one that a power cut interrupts.
type operation struct {
	name  string
	run   func(ctx context.Context, c *client.Client, id string) error
	after []string // states of the VM that has answered; "" if it is deleted
	later []string // further states that are true when it has not answered
}

var operations = []operation{
	{"create", func(ctx context.Context, c *client.Client, _ string) error {
		_, err := c.CreateVM(ctx, api.CreateVM{Name: "second", MachineSpec: api.MachineSpec{ImageID: minimalID, MemMiB: new(minimalMem), DiskMiB: new(128)}}, client.CreateOptions{})
		return err
	}, []string{api.StateRunning, api.StateStarting}, nil},
	{"sleep", func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.SleepVMDurably(ctx, id)
		return err
		// Stopped: the VMM had ended, and its memory was not on disk yet.
	}, []string{api.StateSnapshotted}, []string{api.StateRunning, api.StateStarting, api.StateStopped}},
	{"snapshot", func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.CreateSnapshot(ctx, id, api.CreateSnapshot{Name: "second"})
		return err
	}, []string{api.StateRunning, api.StateStarting}, nil},
	{"fork", func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.ForkVM(ctx, id, api.ForkVM{Name: "second"})
		return err
	}, []string{api.StateRunning, api.StateStarting}, nil},
	{"delete", func(ctx context.Context, c *client.Client, id string) error {
		return c.DeleteVM(ctx, id)
	}, []string{""}, []string{api.StateRunning, api.StateStarting}},
}

// TestPowerCuts cuts the power at several moments of each operation. What was answered
// must be true afterwards, what a guest has synced must be on its disk, and nothing
// may stand in the way of the next start.
func TestPowerCuts(t *testing.T) {
	if testing.Short() {
		t.Skip("fifty boots of a host; make test-lab runs them")
	}
	w := newWorld(t, Debian12, "xfs", "minimal")
	empty := w.traces(t)
	for _, op := range operations {
		lasts := w.measure(t, op)
		for i := range *moments {
			after := lasts * time.Duration(i+1) / time.Duration(*moments)
			t.Run(fmt.Sprintf("%s/%d ms", op.name, after.Milliseconds()), func(t *testing.T) { w.cut(t, op, after, empty) })
		}
	}
}

// measure returns how long an operation takes.
func (w *world) measure(t *testing.T, op operation) time.Duration {
	t.Helper()
	v := w.create(t, "first", "auto")
	began := time.Now()
	if err := op.run(t.Context(), w.client, v.ID); err != nil {
		t.Fatal(err)
	}
	lasts := time.Since(began)
	w.removeAll(t)
	return lasts
}

// cut cuts the power after some time of an operation on a VM that writes to its disk
// before.
func (w *world) cut(t *testing.T, op operation, after time.Duration, empty string) {
	v := w.create(t, "first", "auto")
	synced := 0
	for i := range 5 {
		w.inside(t, v.ID, fmt.Sprintf("echo %d >/count && sync", i+1))
		synced = i + 1
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- op.run(ctx, w.client, v.ID) }()
	<-time.After(after) // the moment of the cut is what the test varies
	if err := w.host.CutPower(); err != nil {
		t.Fatal(err)
	}
	cancel()
	answered := <-answer == nil
	w.boot(t)
	w.connect(t)

	states := op.after
	if !answered {
		states = append(append(states, op.later...), "")
		if op.name != "delete" {
			states = states[:len(states)-1]
		}
	}
	w.requireState(t, v.ID, states, answered)
	if now, err := w.client.GetVM(t.Context(), v.ID); err == nil && op.name != "delete" {
		switch now.State {
		case api.StateSnapshotted:
			w.do(t, "wake", v.ID, api.StateRunning, w.client.WakeVM)
		case api.StateStopped:
			w.do(t, "start", v.ID, api.StateRunning, w.client.StartVM)
		}
		w.await(t, v.ID, "ready")
		if got, err := strconv.Atoi(w.inside(t, v.ID, "cat /count")); err != nil || got < synced {
			t.Errorf("it had synced %d, and has %d, %v", synced, got, err)
		}
	}
	if op.name != "delete" && answered {
		w.requireSecond(t, op)
	}
	w.removeAll(t)
	w.requireTraces(t, empty)
}

// requireState checks that a VM comes to be in one of the states.
func (w *world) requireState(t *testing.T, id string, states []string, answered bool) {
	t.Helper()
	var v api.VM
	err := sandbox.Poll(replyLimit, func() (bool, error) { // until recovery has ended, and VMs are back
		var err error
		if v, err = w.client.GetVM(t.Context(), id); err != nil && !client.IsNotFound(err) {
			return false, err
		}
		return slices.Contains(states, v.State), nil // "" if there is none
	})
	if err == nil {
		return
	}
	t.Errorf("it is %q (%s), want one of %q; answered: %v", v.State, v.StateReason, states, answered)
}

// requireSecond checks that what an operation has answered to have made exists.
func (w *world) requireSecond(t *testing.T, op operation) {
	t.Helper()
	switch op.name {
	case "create", "fork":
		if v := w.named(t, "second"); v.State == "" || v.State == api.StateError {
			t.Errorf("the second VM is %q (%s)", v.State, v.StateReason)
		}
	case "snapshot":
		if _, err := w.client.GetSnapshot(t.Context(), "second"); err != nil {
			t.Errorf("the snapshot: %v", err)
		}
	}
}

// named returns the VM of this name; none has an empty state.
func (w *world) named(t *testing.T, name string) api.VM {
	t.Helper()
	for v, err := range w.client.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if v.Name == name {
			return v
		}
	}
	return api.VM{}
}

// removeAll deletes all VMs and snapshots.
func (w *world) removeAll(t *testing.T) {
	t.Helper()
	for v, err := range w.client.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		w.remove(t, v.ID)
	}
	snapshots, err := w.client.ListSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range snapshots {
		if err := w.client.DeleteSnapshot(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
}
