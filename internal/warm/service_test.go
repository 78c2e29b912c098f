package warm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestAMissedShapeIsBuiltOnce(t *testing.T) {
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
		t.Errorf("kept is %+v", g[0])
	}
	w.requireFind(t, shape(64), true)
	w.requireFind(t, shape(65), false)
	if others, err := w.List(t.Context(), "img_b"); err != nil || len(others) != 0 {
		t.Errorf("of another image there are %+v, %v", others, err)
	}
}

func TestOnlyWhoMayAsks(t *testing.T) {
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
		t.Errorf("asked for one: %v", err)
	}
	off.requireStates(t)
	off.Service.mode = Auto
	off.Missed(t.Context(), shape(64))
	off.buildAll(t)
	off.Service.mode = Off
	off.requireFind(t, shape(64), false)
}

func TestTooManyShapesWait(t *testing.T) {
	w := newWorld(t, Manual)
	for i := range maxWaiting {
		if err := w.Keep(t.Context(), shape(64+i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, one := range []vm.Shape{shape(1024), {ImageID: "img_b"}} { // all images of one owner count
		if err := w.Keep(t.Context(), one); !errs.HasCode(err, "warm_queue_full") {
			t.Errorf("one more: %v", err)
		}
	}
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Errorf("one that waits: %v", err)
	}
	if err := w.Keep(t.Context(), othersShape(64)); err != nil {
		t.Errorf("another owner's: %v", err)
	}
	if err := w.Forget(t.Context(), imageID); err != nil {
		t.Error(err)
	}
	if err := w.Keep(t.Context(), shape(1024)); err != nil {
		t.Errorf("once the others are forgotten: %v", err)
	}
	if err := w.Keep(t.Context(), vm.Shape{ImageID: "img_gone"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("of an image that is gone: %v", err)
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
	for s, ok := w.next(); ok; s, ok = w.next() {
		order = append(order, s.MemMiB)
	}
	if want := []int{1, 4, 2, 5, 3}; !slices.Equal(order, want) {
		t.Errorf("built are %v, want %v", order, want)
	}
}

// Whoever keeps many costs others nothing.
func TestOnlyWhoHasTheMostMakesRoom(t *testing.T) {
	w := newWorld(t, Manual)
	shapes := []vm.Shape{othersShape(1)}
	for i := range maxKept {
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

func TestAFailedBuildIsToldAndRests(t *testing.T) {
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
	rested.At = rested.At.Add(-failureRest)
	w.builds[key] = rested
	w.Missed(t.Context(), shape(64))
	w.requireStates(t, Building)
	w.buildAll(t)
	w.vms.unready = nil
	if err := w.Keep(t.Context(), shape(64)); err != nil { // people need not wait
		t.Error(err)
	}
	w.buildAll(t)
	w.requireStates(t, Ready)
}

func TestWhatIsOutOfDateIsRemoved(t *testing.T) {
	w := newWorld(t, Manual)
	for range 2 { // the second time it is another's work
		w.builds[shape(64).Key()] = Guest{Shape: shape(64), State: Building}
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

func TestTheOldestMakeRoom(t *testing.T) {
	w := newWorld(t, Manual)
	for i := range maxKept + 1 {
		if err := w.Keep(t.Context(), shape(256+i)); err != nil {
			t.Fatal(err)
		}
		w.buildAll(t)
	}
	w.removeStale(t.Context(), w.vms)
	w.requireFind(t, shape(256), false)
	w.requireFind(t, shape(257), true)
	w.requireFind(t, shape(256+maxKept), true)
}

func TestADamagedOneIsRemoved(t *testing.T) {
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

func TestASpoiledOneIsRemovedAndRests(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	warmth, ok := w.Find(t.Context(), shape(64), ample)
	if !ok {
		t.Fatal("there is none")
	}
	w.Spoiled(warmth.Snapshot, errs.New(errs.Unavailable, "copy_not_confirmed", "it has not said so"))
	w.removeStale(t.Context(), w.vms) // it is in use
	warmth.Release()
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

func TestMemoryIsHeldWhileItIsUsed(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	w.requireFind(t, shape(64), true)
	w.damage(t, w.requireStates(t, Ready)[0].SnapshotID) // RAM does not notice
	w.dropBases(unusedFor(time.Hour))
	w.requireFind(t, shape(64), true)
	w.dropBases(unusedFor(0))
	if len(w.idle) != 0 || len(w.files.Bases()) != 0 {
		t.Errorf("held are %v", w.files.Bases())
	}
	w.requireFind(t, shape(64), false)
}

func TestMemoryIsReadWhereThereIsRoom(t *testing.T) {
	w := newWorld(t, Auto)
	w.Missed(t.Context(), shape(64))
	w.buildAll(t)
	full := errs.New(errs.Exhausted, "memory_exhausted", "there is no room")
	if _, ok := w.Find(t.Context(), shape(64), func(context.Context) error {
		if held := w.files.Bases(); len(held) != 1 || held[0].Bytes == 0 {
			t.Errorf("while room is asked for this counts: %+v", held)
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
		t.Error("what is in RAM needs no room")
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
		t.Error("what VMs use was dropped")
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
	warmth, ok := w.Find(t.Context(), shape(64), ample)
	if !ok {
		t.Fatal("there is none")
	}
	if err := w.Forget(t.Context(), imageID); !errs.HasCode(err, "snapshot_in_use") {
		t.Errorf("while one is in use: %v", err)
	}
	warmth.Release()
	if err := w.Forget(t.Context(), "img_b"); err != nil {
		t.Error(err)
	}
	w.requireStates(t, Ready)
	if err := w.Forget(t.Context(), imageID); err != nil {
		t.Error(err)
	}
	w.buildAll(t) // what had been asked for
	w.requireStates(t)
	if w.vms.made != 1 {
		t.Errorf("%d VMs were made", w.vms.made)
	}
}

func TestABuildIsEnded(t *testing.T) {
	for name, end := range map[string]func(*world) error{
		"forgotten": func(w *world) error { return w.Forget(t.Context(), imageID) },
		"in the way of a VM": func(w *world) error {
			if !w.EndBuild(t.Context()) {
				return errors.New("there is none")
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
				t.Error("another one was ended")
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
		t.Errorf("deleted was %s, not what an earlier daemon had left", id)
	}
	w.Missed(t.Context(), shape(64))
	<-w.vms.gone // once it is kept
	w.requireFind(t, shape(64), true)
	cancel()
	<-ended
	if len(w.idle) != 0 || len(w.files.Bases()) != 0 {
		t.Errorf("held are %v", w.files.Bases())
	}
}

func TestHatchdEndsAmidABuild(t *testing.T) {
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
			t.Errorf("that counts as a failure: %+v", g)
		}
	}
}

var (
	_ VMs = (*fakeVMs)(nil)
	_ VMs = (*vm.Service)(nil)
)
