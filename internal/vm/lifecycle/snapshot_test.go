package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// writeDisk is what the guest of a VM does to its disk.
func (w *world) writeDisk(t *testing.T, id, content string) {
	t.Helper()
	if err := os.WriteFile(w.disk(id), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) disk(id string) string { return filepath.Join(w.root, id, "disk.img") }

func (w *world) requireDisk(t *testing.T, id, want string) {
	t.Helper()
	got, err := os.ReadFile(w.disk(id))
	if err != nil || string(got) != want {
		t.Errorf("the disk of %s holds %q, %v; want %q", id, got, err, want)
	}
}

// take takes a snapshot of a VM whose disk holds content.
func (w *world) take(t *testing.T, id, content string, req vm.SnapshotRequest) snapshot.Snapshot {
	t.Helper()
	w.writeDisk(t, id, content)
	snap, err := w.Snapshot(t.Context(), access.Owner(owner), id, req)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// requireSnapshots checks which snapshots there are, in the store and on disk.
func (w *world) requireSnapshots(t *testing.T, want ...string) {
	t.Helper()
	all, err := w.snapshots.List(t.Context(), access.Owner(owner), snapshot.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	files, err := w.snapshotFiles.List()
	if err != nil || len(all) != len(want) || len(files) != len(want) {
		t.Errorf("there are snapshots %v and files %v, %v; want %v", all, files, err, want)
	}
}

func TestASnapshotIsTakenOfARunningVM(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "first", vm.SnapshotRequest{Name: "before"})
	requireAwake(t, w, v)
	if !snap.Durable || snap.Bytes == 0 || snap.Kind != snapshot.Manual || snap.Name != "before" || snap.VMID != v.ID || snap.ParentID != "" {
		t.Errorf("the snapshot is %+v", snap)
	}
	if snap.VM.MAC.String() != v.Lease.MAC.String() || snap.Machine.Driver != "fake" || snap.Sums.Disk == "" {
		t.Errorf("the snapshot is %+v", snap)
	}
	if err := w.Fits(snap); err != nil {
		t.Errorf("it does not fit where it was taken: %v", err)
	}
	w.awaitClock(t, v.ID)
	second := w.take(t, v.ID, "second", vm.SnapshotRequest{Automatic: true})
	if second.ParentID != snap.ID || second.Kind != snapshot.Automatic {
		t.Errorf("the second is %+v", second)
	}
	if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{Name: "before"}); !errs.HasCode(err, "name_taken") {
		t.Errorf("a name that is taken: %v", err)
	}
	w.requireSnapshots(t, snap.ID, second.ID)
}

// awaitClock waits until a guest that has stood was told the time.
func (w *world) awaitClock(t *testing.T, id string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-tick.C {
		if w.guests.Session(id).ClocksSet() > 0 {
			return
		}
	}
	t.Error("its guest was not told the time")
}

func TestASnapshotIsTakenOfAVMThatSleeps(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "content", vm.SnapshotRequest{Stop: true})
	requireAsleep(t, w, v)
	awaitDurable(t, w, v.ID)
	again, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{})
	if err != nil || again.ParentID != snap.ID {
		t.Fatalf("of one that sleeps, from disk: %+v, %v", again, err)
	}
	requireAsleep(t, w, v)
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	requireAwake(t, w, v)
	w.requireDisk(t, v.ID, "content")
}

func TestDamagedMemoryIsNotSnapshotted(t *testing.T) {
	for _, part := range []string{"memory", "memory.json", vmm.SavedDevices} {
		t.Run(part, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Fatal(err)
			}
			awaitDurable(t, w, v.ID)
			flip(t, filepath.Join(w.memories.Dir(v.ID), part))
			if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{}); !errs.HasCode(err, "saved_unusable") {
				t.Errorf("a snapshot: %v", err)
			}
			if _, err := w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "saved_unusable") {
				t.Errorf("a fork: %v", err)
			}
			requireAsleep(t, w, v)
			w.requireSnapshots(t)
		})
	}
}

func TestASnapshotOfAPausedVMLeavesItPaused(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.take(t, v.ID, "content", vm.SnapshotRequest{})
	m, _ := w.machine(t, get(t, w, v.ID))
	if paused, err := m.Paused(t.Context()); err != nil || !paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
}

func TestFailedSnapshotLeavesNothing(t *testing.T) {
	for _, call := range []string{"Save", "Capture", "Initramfs", "Disks"} {
		for _, stop := range []bool{false, true} {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.calls.FailNext(call)
			if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{Stop: stop}); err == nil {
				t.Errorf("%s, stop %v: it did not fail", call, stop)
			}
			requireAwake(t, w, v)
			w.requireSnapshots(t)
		}
	}
}

// A request that is refused does not put the VM to sleep, nor cost it another
// snapshot.
func TestASnapshotWithAStopThatIsRefusedLeavesTheVMRunning(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{Name: "taken"})
	handle := get(t, w, v.ID).Machine.PID
	for name, code := range map[string]string{"taken": "name_taken", "not a name": "invalid_name"} {
		if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{Name: name, Stop: true}); !errs.HasCode(err, code) {
			t.Errorf("%q: %v", name, err)
		}
	}
	requireAwake(t, w, v)
	if now := get(t, w, v.ID).Machine.PID; now != handle {
		t.Errorf("it slept and was woken: its VMM was %d and is %d", handle, now)
	}
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{Stop: true}); !errs.HasCode(err, "vm_paused") {
		t.Errorf("of a VM that is paused: %v", err)
	}
	w.requireSnapshots(t, snap.ID)
}

func TestASnapshotNeedsAGuest(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Snapshot(t.Context(), access.Owner(owner), v.ID, vm.SnapshotRequest{}); !errs.HasCode(err, "vm_not_running") {
		t.Errorf("of a VM that is stopped: %v", err)
	}
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, ""); !errs.HasCode(err, "no_snapshot") {
		t.Errorf("a restore without a snapshot: %v", err)
	}
}

func TestRestoreFromEveryState(t *testing.T) {
	for name, bring := range map[string]func(*world, string) error{
		"running":  func(*world, string) error { return nil },
		"paused":   func(w *world, id string) error { _, err := w.Pause(t.Context(), access.Owner(owner), id); return err },
		"asleep":   func(w *world, id string) error { _, err := w.Sleep(t.Context(), access.Owner(owner), id); return err },
		"stopped":  func(w *world, id string) error { _, err := w.Stop(t.Context(), access.Owner(owner), id); return err },
		"diskless": func(w *world, id string) error { return os.Remove(w.disk(id)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			older := w.take(t, v.ID, "older", vm.SnapshotRequest{})
			w.take(t, v.ID, "newer", vm.SnapshotRequest{})
			w.writeDisk(t, v.ID, "now")
			if err := bring(w, v.ID); err != nil {
				t.Fatal(err)
			}
			back, err := w.Restore(t.Context(), access.Owner(owner), v.ID, older.ID)
			if err != nil || back.SnapshotID != older.ID {
				t.Fatalf("the older one: %+v, %v", back, err)
			}
			requireAwake(t, w, v)
			w.requireDisk(t, v.ID, "older")
			if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, ""); err != nil {
				t.Fatal(err)
			}
			requireAwake(t, w, v)
			w.requireDisk(t, v.ID, "newer")
			w.requireStageGone(t, v.ID)
		})
	}
}

func (w *world) requireStageGone(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(w.root, id, "restore")); !os.IsNotExist(err) {
		t.Errorf("what was staged is still there: %v", err)
	}
}

func TestRestoreRefusesWithoutTouchingTheVM(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	other := mustCreate(t, w, vm.CreateRequest{})
	elsewhere := w.take(t, other.ID, "other", vm.SnapshotRequest{})
	if err := w.Delete(t.Context(), access.Owner(owner), other.ID); err != nil {
		t.Fatal(err)
	}
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
	w.writeDisk(t, v.ID, "now")
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, elsewhere.ID); !errs.HasCode(err, "invalid_snapshot_id") {
		t.Errorf("a snapshot of another VM: %v", err)
	}
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, "snap_none"); !errs.HasCode(err, "invalid_snapshot_id") {
		t.Errorf("one that is not there: %v", err)
	}
	w.calls.FailNext("Stage")
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err == nil {
		t.Error("a stage that fails did not fail")
	}
	flip(t, filepath.Join(w.snapshotFiles.Dir(snap.ID), "disk.img"))
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); !errs.HasCode(err, "snapshot_unusable") {
		t.Errorf("one that is damaged: %v", err)
	}
	requireAwake(t, w, v)
	w.requireDisk(t, v.ID, "now")
}

// What does not fit is told before all of the snapshot is read, in words that
// leave the VM alone.
func TestRestoreRefusesIncompatibleSnapshots(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"it needs version 1.0 of fake, and 2.0 is installed": func(w *world) { w.driver.Version = "2.0" },
		"its kernel or root": func(w *world) { w.changeImage(t) },
		"it is odd":          func(w *world) { w.calls.Fail("Check", 1, vmm.Unusable("it is odd")) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
			w.writeDisk(t, v.ID, "now")
			spoil(w)
			fits := w.Fits(snap) == nil
			if !fits { // then nothing of it is read
				flip(t, filepath.Join(w.snapshotFiles.Dir(snap.ID), "disk.img"))
			}
			_, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Conflict || e.Code != "snapshot_unusable" || !strings.Contains(e.Message, name) {
				t.Fatalf("got %v", err)
			}
			if e.Hint == "" || strings.Contains(e.Hint, "start the VM") {
				t.Errorf("the hint is %q", e.Hint)
			}
			requireAwake(t, w, v)
			w.requireDisk(t, v.ID, "now")
			w.requireStageGone(t, v.ID)
		})
	}
}

// changeImage puts another file in the place of the image's.
func (w *world) changeImage(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(w.image.Kernel.Path, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// There must be room for the VM's memory before what it has is lost.
func TestRestoreOnAFullHostKeepsTheDisk(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
	w.memMiB = 512 // of which the VM has all
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err != nil {
		t.Fatalf("of one that runs: %v", err)
	}
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	other := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
	w.writeDisk(t, v.ID, "now")
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); !errs.Is(err, errs.Exhausted) || !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	if now := get(t, w, v.ID); now.State != vm.Stopped {
		t.Errorf("it is %s", now.State)
	}
	w.requireDisk(t, v.ID, "now")
	w.requireStageGone(t, v.ID)
	if err := w.Delete(t.Context(), access.Owner(owner), other.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err != nil {
		t.Fatal(err)
	}
	w.requireDisk(t, v.ID, "kept")
}

// flip changes one bit of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[0] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The daemon is killed, or the disk fails it, after the row says that the VM is
// what the snapshot holds.
func TestInterruptedRestoreIsFinished(t *testing.T) {
	nextDaemon := func(t *testing.T, w *world) { w.shut(t); w.serve(t) }
	faultyDaemon := func(t *testing.T, w *world) {
		w.shut(t)
		w.open(t)
		w.calls.FailNext("Kill")
		if err := w.Recover(t.Context(), "/"); err == nil || w.calls.Withdraw("Kill") {
			t.Errorf("the recovery ended the machine: %v", err)
		}
	}
	for name, when := range map[string]struct {
		fault string
		goOn  func(t *testing.T, w *world)
	}{
		"by the next operation":                          {"CommitStaged", func(*testing.T, *world) {}},
		"by the next daemon":                             {"CommitStaged", nextDaemon},
		"by the next operation, while the machine lives": {"Kill", func(*testing.T, *world) {}},
		"by the next daemon, while the machine lives":    {"Kill", nextDaemon},
		"after a daemon that could not end the machine":  {"Kill", faultyDaemon},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
			w.writeDisk(t, v.ID, "now")
			w.calls.FailNext(when.fault)
			if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err == nil {
				t.Fatal("it did not fail")
			}
			if left := get(t, w, v.ID); left.State != vm.Snapshotted || !left.Sleep.Staged {
				t.Fatalf("it is %s, %+v", left.State, left.Sleep)
			}
			when.goOn(t, w)
			if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Fatal(err)
			}
			requireAwake(t, w, v)
			w.requireDisk(t, v.ID, "kept")
			w.requireStageGone(t, v.ID)
		})
	}
}

// The daemon is killed, or the VMM does not end, before anything is moved: no
// guest goes on that the row does not tell of.
func TestRestoreInterruptedBeforeTheMachineEndsIsFinished(t *testing.T) {
	for name, goOn := range map[string]func(t *testing.T, w *world, id string){
		"by the next operation":  func(*testing.T, *world, string) {},
		"by the next daemon":     func(t *testing.T, w *world, _ string) { w.shut(t); w.serve(t) },
		"once its VMM has ended": func(t *testing.T, w *world, id string) { w.driver.Crash(id); w.awaitNoLink(t) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
			w.writeDisk(t, v.ID, "now")
			w.calls.FailNext("Kill")
			if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err == nil {
				t.Fatal("it did not fail")
			}
			w.requireDisk(t, v.ID, "now")
			goOn(t, w, v.ID)
			if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Fatal(err)
			}
			requireAwake(t, w, v)
			w.requireDisk(t, v.ID, "kept")
			w.requireStageGone(t, v.ID)
			if all, err := w.driver.List(t.Context(), "/"); err != nil || len(all) != 1 {
				t.Errorf("there are the machines %v, %v", all, err)
			}
		})
	}
}

func (w *world) awaitNoLink(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-tick.C {
		if len(w.network.Links()) == 0 {
			return
		}
	}
	t.Error("its link stays")
}

// The move can be repeated from any point at which it was cut short.
func TestRestoreCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	awaitDurable(t, w, v.ID)
	w.change(t, v.ID, func(v *vm.VM) { staged := *v.Sleep; staged.Staged = true; v.Sleep = &staged })
	if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil { // all was moved, but for the row
		t.Fatal(err)
	}
	requireAwake(t, w, v)
}

func TestCrashDuringASnapshotLeavesNothing(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.snapshots.Begin(t.Context(), snapshot.Snapshot{
		OwnerID: owner, VMID: v.ID, Kind: snapshot.Manual, VM: snapshot.Origin{Spec: machine.Spec{ImageID: v.ImageID}},
	}, 0); err != nil {
		t.Fatal(err)
	}
	w.shut(t)
	w.serve(t)
	w.requireSnapshots(t)
	requireAwake(t, w, v)
}

// A restore that cannot be stored leaves a VM that sleeps as it was: its memory
// still becomes durable.
func TestRestoreThatCannotBeStoredLeavesTheVMAsleep(t *testing.T) {
	w := newWorld(t)
	w.holdPersist = make(chan struct{})
	v := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{})
	if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.writeDisk(t, v.ID, "now")
	w.calls.FailNext("UpdateVM")
	if _, err := w.Restore(t.Context(), access.Owner(owner), v.ID, snap.ID); err == nil {
		t.Fatal("it did not fail")
	}
	requireAsleep(t, w, v)
	close(w.holdPersist)
	awaitDurable(t, w, v.ID)
	w.requireDisk(t, v.ID, "now")
	w.shut(t)
	w.serve(t)
	w.requireStageGone(t, v.ID)
	requireAsleep(t, w, v)
}
