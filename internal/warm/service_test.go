package warm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/lifecycle"
)

func TestMissedShapeIsBuiltOnce(t *testing.T) {
	w := newWorld(t, Auto)
	w.requireFind(t, shape(64), false)
	w.Missed(t.Context(), shape(64))
	w.Missed(t.Context(), shape(64))
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Error(err)
	}
	w.requireStates(t, Building)
	w.buildAll(t)
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Error(err)
	}
	w.buildAll(t)
	if w.vms.made != 1 || len(w.vms.shapes) != 0 {
		t.Errorf("%d VMs were made, and there are %v", w.vms.made, w.vms.shapes)
	}
	if g := w.requireStates(t, Ready); g[0].Shape.Key() != shape(64).Key() || g[0].SnapshotID == "" {
		t.Errorf("the entry is %+v", g[0])
	}
	w.requireFind(t, shape(64), true)
	w.requireFind(t, shape(65), false)
	if others, err := w.List(t.Context(), "img_b"); err != nil || len(others) != 0 {
		t.Errorf("of another image there are %+v, %v", others, err)
	}
}

// A build that ends while the list is made must not be missing from it.
func TestAGuestIsListedWhileItsBuildEnds(t *testing.T) {
	w := newWorld(t, Manual)
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Fatal(err)
	}
	w.listing = func() {
		w.listing = nil
		w.buildAll(t)
	}
	w.requireStates(t, Building)
	w.requireStates(t, Ready)
}

func TestOnlyAutoBuildsOnAMiss(t *testing.T) {
	manual := newWorld(t, Manual)
	manual.Missed(t.Context(), shape(64))
	manual.requireStates(t)
	if err := manual.Keep(t.Context(), shape(64)); err != nil {
		t.Error(err)
	}
	manual.buildAll(t)
	manual.requireFind(t, shape(64), true)

	off := newWorld(t, Off)
	off.Missed(t.Context(), shape(64))
	if err := off.Keep(t.Context(), shape(64)); !errs.HasCode(err, "warm_off") {
		t.Errorf("a request while the pool is off: %v", err)
	}
	off.requireStates(t)
	off.Service.mode = Auto
	off.Missed(t.Context(), shape(64))
	off.buildAll(t)
	off.Service.mode = Off
	off.requireFind(t, shape(64), false)
}

func TestQueueIsBounded(t *testing.T) {
	w := newWorld(t, Manual)
	for i := range maxQueued {
		if err := w.Keep(t.Context(), shape(64+i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, one := range []vm.Shape{shape(1024), {Shape: machine.Shape{ImageID: "img_b"}}} { // all images of one owner count
		if err := w.Keep(t.Context(), one); !errs.HasCode(err, "warm_queue_full") {
			t.Errorf("a request beyond the limit: %v", err)
		}
	}
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Errorf("a queued shape: %v", err)
	}
	if err := w.Keep(t.Context(), othersShape(64)); err != nil {
		t.Errorf("another owner's: %v", err)
	}
	if err := w.Forget(t.Context(), imageID); err != nil {
		t.Error(err)
	}
	if err := w.Keep(t.Context(), shape(1024)); err != nil {
		t.Errorf("after the others were removed: %v", err)
	}
	if err := w.Keep(t.Context(), vm.Shape{Shape: machine.Shape{ImageID: "img_gone"}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("of a deleted image: %v", err)
	}
}

func TestOwnersTakeTurns(t *testing.T) {
	w := newWorld(t, Manual)
	for _, one := range []vm.Shape{shape(1), shape(2), shape(3), othersShape(4), othersShape(5)} {
		if err := w.Keep(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	var order []int
	for s, ok := w.next(true); ok; s, ok = w.next(true) {
		order = append(order, s.MemMiB)
	}
	if want := []int{1, 4, 2, 5, 3}; !slices.Equal(order, want) {
		t.Errorf("built are %v, want %v", order, want)
	}
}

// An owner with many snapshots costs other owners nothing.
func TestOnlyTheOwnerWithMostIsEvicted(t *testing.T) {
	w := newWorld(t, Manual)
	shapes := []vm.Shape{othersShape(1)}
	for i := range maxSnapshots {
		shapes = append(shapes, shape(256+i))
	}
	for _, one := range shapes {
		if err := w.Keep(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		w.buildAll(t)
	}
	w.removeStale(t.Context(), w.vms)
	w.requireFind(t, othersShape(1), true)
	w.requireFind(t, shape(256), false)
	w.requireFind(t, shape(257), true)
}

func TestFailedBuildIsReportedAndBacksOff(t *testing.T) {
	w := newWorld(t, Auto)
	w.vms.unready = errs.New(errs.Unavailable, "wait_timeout", "its kernel has panicked")
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	if g := w.requireStates(t, Failed); !strings.Contains(g[0].Reason, "its kernel has panicked") {
		t.Errorf("the reason is %q", g[0].Reason)
	}
	if len(w.vms.shapes) != 0 {
		t.Errorf("left behind: %v", w.vms.shapes)
	}
	w.Missed(t.Context(), shape(64))
	w.requireStates(t, Failed)
	key := shape(64).Key()
	rested := w.builds[key]
	rested.At = rested.At.Add(-failureBackoff)
	w.builds[key] = rested
	w.Missed(t.Context(), shape(64))
	w.requireStates(t, Building)
	w.buildAll(t)
	w.vms.unready = nil
	if err := w.Keep(t.Context(), shape(64)); err != nil { // a request is not subject to the backoff
		t.Error(err)
	}
	w.buildAll(t)
	w.requireStates(t, Ready)
}

func TestOutdatedSnapshotsAreRemoved(t *testing.T) {
	w := newWorld(t, Manual)
	for range 2 { // the second time it is gone already
		w.builds[shape(64).Key()] = Entry{Shape: shape(64), State: Building}
		w.build(t.Context(), w.vms, shape(64))
	}
	all := w.requireStates(t, Ready, Ready)
	w.removeStale(t.Context(), w.vms)
	if left := w.requireStates(t, Ready); left[0].SnapshotID != all[0].SnapshotID {
		t.Error("the newer one of two was removed")
	}
	w.vms.stale = true
	w.removeStale(t.Context(), w.vms)
	w.requireStates(t)
	if files, err := w.files.List(); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestOldestSnapshotsAreEvicted(t *testing.T) {
	w := newWorld(t, Manual)
	for i := range maxSnapshots + 1 {
		if err := w.Keep(t.Context(), shape(256+i)); err != nil {
			t.Fatal(err)
		}
		w.buildAll(t)
	}
	w.removeStale(t.Context(), w.vms)
	w.requireFind(t, shape(256), false)
	w.requireFind(t, shape(257), true)
	w.requireFind(t, shape(256+maxSnapshots), true)
}

func TestDamagedSnapshotIsRemoved(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.damage(t, w.requireStates(t, Ready)[0].SnapshotID)
	w.requireFind(t, shape(64), false)
	w.requireStates(t)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.requireFind(t, shape(64), true)
}

// TestLostFilesAreNotReady: what is listed as ready has its files.
func TestLostFilesAreNotReady(t *testing.T) {
	w := newWorld(t, Manual)
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Fatal(err)
	}
	w.buildAll(t)
	snap := w.requireStates(t, Ready)[0].SnapshotID
	if err := os.Remove(filepath.Join(w.files.Dir(snap), "memory")); err != nil {
		t.Fatal(err)
	}
	w.requireStates(t)
	w.removeStale(t.Context(), w.vms)
	if files, err := w.files.List(); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestSpoiledSnapshotIsRemovedAndBacksOff(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	warm, ok := w.Find(t.Context(), shape(64), ample)
	if !ok {
		t.Fatal("there is no warm snapshot")
	}
	w.Spoiled(t.Context(), warm.Snapshot, errs.New(errs.Conflict, "snapshot_unusable", "it has not said so"))
	w.removeStale(t.Context(), w.vms) // it is in use
	warm.Release()
	w.requireFind(t, shape(64), false)
	if g := w.requireStates(t, Failed); g[0].Reason != "it has not said so" {
		t.Errorf("the reason is %q", g[0].Reason)
	}
	w.removeStale(t.Context(), w.vms)
	if files, err := w.files.List(); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	w.Missed(t.Context(), shape(64))
	w.requireStates(t, Failed)
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Error(err)
	}
	w.buildAll(t)
	w.requireFind(t, shape(64), true)
}

func TestMemoryIsPinnedWhileInUse(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.requireFind(t, shape(64), true)
	w.damage(t, w.requireStates(t, Ready)[0].SnapshotID) // the base in RAM is not affected
	w.dropBases(unusedFor(time.Hour))
	w.requireFind(t, shape(64), true)
	w.dropBases(unusedFor(0))
	if len(w.bases) != 0 || len(w.files.Bases()) != 0 {
		t.Errorf("held are %v", w.files.Bases())
	}
	w.requireFind(t, shape(64), false)
}

func TestMemoryIsReadIfThereIsCapacity(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	full := errs.New(errs.Exhausted, "memory_exhausted", "there is no room")
	if _, ok := w.Find(t.Context(), shape(64), func(context.Context) error {
		if held := w.files.Bases(); len(held) != 1 || held[0].Bytes == 0 {
			t.Errorf("while capacity is requested this counts: %+v", held)
		}
		return full
	}); ok {
		t.Error("it was read")
	}
	if held := w.files.Bases(); len(held) != 0 {
		t.Errorf("held is %+v", held)
	}
	w.Missed(t.Context(), shape(64))
	w.requireStates(t, Ready) // it is there

	w.requireFind(t, shape(64), true)
	if _, ok := w.Find(t.Context(), shape(64), func(context.Context) error { return full }); !ok {
		t.Error("a base in RAM needs no capacity")
	}
}

func TestIdleMemoryIsDropped(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.requireFind(t, shape(64), true)
	held := w.files.Bases()
	if len(held) != 1 {
		t.Fatalf("held is %+v", held)
	}
	if w.DropIdle(map[uint64]bool{held[0].Inode: true}) || len(w.files.Bases()) != 1 {
		t.Error("a base in use was dropped")
	}
	if !w.DropIdle(nil) || len(w.files.Bases()) != 0 || w.DropIdle(nil) {
		t.Errorf("held is %+v", w.files.Bases())
	}
	w.requireFind(t, shape(64), true)
}

func TestForget(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.Missed(t.Context(), shape(65))
	warm, ok := w.Find(t.Context(), shape(64), ample)
	if !ok {
		t.Fatal("there is no warm snapshot")
	}
	if err := w.Forget(t.Context(), imageID); !errs.HasCode(err, "snapshot_in_use") {
		t.Errorf("while one is in use: %v", err)
	}
	warm.Release()
	if err := w.Forget(t.Context(), "img_b"); err != nil {
		t.Error(err)
	}
	w.requireStates(t, Ready)
	if err := w.Forget(t.Context(), imageID); err != nil {
		t.Error(err)
	}
	w.buildAll(t) // queued earlier
	w.requireStates(t)
	if w.vms.made != 1 {
		t.Errorf("%d VMs were made", w.vms.made)
	}
}

func TestEndBuild(t *testing.T) {
	for name, end := range map[string]func(*world) error{
		"forgotten": func(w *world) error { return w.Forget(t.Context(), imageID) },
		"in the way of a VM": func(w *world) error {
			if !w.EndBuild(t.Context()) {
				return errors.New("there is no warm snapshot")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Auto)
			booting := make(chan struct{})
			w.vms.waits = func(ctx context.Context) error {
				close(booting)
				<-ctx.Done()
				return ctx.Err()
			}
			w.Missed(t.Context(), shape(64))
			built := make(chan struct{})
			go func() { defer close(built); w.buildAll(t) }()
			<-booting
			if err := end(w); err != nil {
				t.Error(err)
			}
			if len(w.vms.shapes) != 0 {
				t.Errorf("left behind: %v", w.vms.shapes)
			}
			w.requireStates(t)
			<-built
			if w.EndBuild(t.Context()) {
				t.Error("another build was cancelled")
			}
			w.vms.waits = nil
			w.Missed(t.Context(), shape(64))
			w.buildAll(t)
			w.requireStates(t, Ready)
		})
	}
}

func TestRun(t *testing.T) {
	w := newWorld(t, Auto)
	left, err := w.vms.CreateOfShape(t.Context(), shape(64))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx, w.vms) }()
	if id := <-w.vms.gone; id != left.ID {
		t.Errorf("deleted %s instead of the VM of an earlier hatchd", id)
	}
	w.Missed(t.Context(), shape(64))
	<-w.vms.gone // once the snapshot is ready
	w.requireFind(t, shape(64), true)
	cancel()
	<-ended
	if len(w.bases) != 0 || len(w.files.Bases()) != 0 {
		t.Errorf("held are %v", w.files.Bases())
	}
}

// runIn runs the pool until the test ends.
func (w *world) runIn(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx, w.vms) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// A build for a VM that had to boot waits until the host is idle. One that a client
// requests does not, also if its shape was queued before.
func TestABuildForAVMWaitsForAnIdleHost(t *testing.T) {
	w := newWorld(t, Auto)
	w.vms.busy = make(chan struct{})
	w.Missed(t.Context(), shape(64))
	w.Missed(t.Context(), shape(65))
	w.runIn(t)
	if err := w.Keep(t.Context(), shape(66)); err != nil {
		t.Fatal(err)
	}
	<-w.vms.gone
	if err := w.Keep(t.Context(), shape(65)); err != nil {
		t.Fatal(err)
	}
	<-w.vms.gone
	for mem, want := range map[int]bool{64: false, 65: true, 66: true} {
		w.requireFind(t, shape(mem), want)
	}
	close(w.vms.busy)
	<-w.vms.gone
	w.requireFind(t, shape(64), true)
}

// On a host that is never idle, a build begins once it has waited long enough.
func TestABuildDoesNotWaitForever(t *testing.T) {
	w := newWorld(t, Auto)
	w.vms.busy = make(chan struct{})
	w.Missed(t.Context(), shape(64))
	w.queue[0].at = time.Now().Add(time.Second - idleTimeout)
	if changed := w.buildNext(t.Context(), w.vms); changed != w.vms.busy || w.vms.made != 0 {
		t.Errorf("before that, %d VMs were made, and it waits for %v", w.vms.made, changed)
	}
	w.queue[0].at = time.Now().Add(-idleTimeout)
	if changed := w.buildNext(t.Context(), w.vms); changed != nil || w.vms.made != 1 {
		t.Errorf("after that, %d VMs were made, and it waits for %v", w.vms.made, changed)
	}
	w.requireFind(t, shape(64), true)
}

func TestHatchdStopsDuringABuild(t *testing.T) {
	w := newWorld(t, Auto)
	ctx, cancel := context.WithCancel(t.Context())
	w.vms.waits = func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return errors.Join(errors.New("cut short"), ctx.Err())
	}
	w.Missed(t.Context(), shape(64))
	w.Run(ctx, w.vms)
	if len(w.vms.shapes) != 0 {
		t.Errorf("left behind: %v", w.vms.shapes)
	}
	for _, g := range w.builds {
		if g.State == Failed {
			t.Errorf("the cancelled build counts as a failure: %+v", g)
		}
	}
}

var (
	_ VMs = (*fakeVMs)(nil)
	_ VMs = (*lifecycle.Service)(nil)
)

// A host on which VMs change all the time is not looked at all the time.
func TestLooksForAnIdleHostAreApart(t *testing.T) {
	w := newWorld(t, Auto)
	looks := make(chan time.Time, 2)
	w.vms.looked = func() {
		select {
		case looks <- time.Now():
		default:
		}
	}
	w.Missed(t.Context(), shape(64))
	w.runIn(t)
	if first, second := <-looks, <-looks; second.Sub(first) < lookInterval {
		t.Errorf("the second look was after %s", second.Sub(first))
	}
}
