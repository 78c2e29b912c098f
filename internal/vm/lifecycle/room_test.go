package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// Each VM of these tests has 512 MiB; what they share is rounded up to 1 MiB.

func TestSharedMemoryOfForksCounts(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	w.fillMemory(t, parent.ID)
	w.memMiB = 2 * 512
	_, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1})
	if !errs.HasCode(err, "memory_exhausted") || !strings.Contains(err.Error(), "shared clone memory 1 of") {
		t.Errorf("got %v", err)
	}
	if held := w.snapshotFiles.Bases(); len(held) != 0 {
		t.Errorf("held is %+v", held)
	}
	w.memMiB++
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	if held := w.snapshotFiles.Bases(); len(held) != 0 {
		t.Errorf("held by hatchd is %+v", held)
	}
	w.shut(t)
	w.serve(t) // by another daemon
	w.memMiB = 3 * 512
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), forks.VMs[0].ID); err != nil {
		t.Fatal(err)
	}
	w.memMiB = 2 * 512
	mustCreate(t, w, vm.CreateRequest{})
}

// fillMemory has a guest use some of its memory.
func (w *world) fillMemory(t *testing.T, id string) {
	t.Helper()
	f, err := os.OpenFile(w.memories.Path(id), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("used"), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestClonesCountBeforeTheirMemoryIsRead(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, parent.ID, "kept", vm.SnapshotRequest{})
	w.memMiB = 2 * 512
	w.calls.FailNext("Base")
	if _, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	if !w.calls.Withdraw("Base") {
		t.Error("it was read")
	}
	w.requireVMs(t, 1)
	w.memMiB++
	if _, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1}); err != nil {
		t.Error(err)
	}
	if held := w.snapshotFiles.Bases(); len(held) != 0 {
		t.Errorf("held by hatchd is %+v", held)
	}
}

func TestIdleWarmMemoryIsEvicted(t *testing.T) {
	w, s := newWarmWorld(t)
	mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
	for what, take := range map[string]func() error{
		"create": func() error {
			_, err := w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
			return err
		},
		"fork": func() error {
			all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{Limit: 1})
			if err == nil {
				_, err = w.Fork(t.Context(), owner, all[0].ID, vm.CloneRequest{Count: 1})
			}
			return err
		},
	} {
		all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		w.memMiB = int64(len(all)+1)*256 + 2
		s.idle = w.snapshotFiles.PinMemory("snap_idle", 10<<20)
		if err := take(); err != nil || s.idle != nil {
			t.Errorf("%s: %v, dropped: %v", what, err, s.idle == nil)
		}
	}
}

// An owner's VM comes before one of hatchd's own.
func TestBuildIsEvicted(t *testing.T) {
	w, s := newWarmWorld(t)
	shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256), DiskMiB: new(256)}})
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(64), DiskMiB: new(64)}})
	for what, limit := range map[string]func(){
		"memory_exhausted": func() { w.memMiB = 256 + 64 },
		"disk_exhausted":   func() { w.diskMiB = func() (int64, error) { return 256 + 64, nil } },
	} {
		own, err := w.CreateOfShape(t.Context(), shape)
		if err != nil {
			t.Fatal(err)
		}
		s.build = func() {
			if err := w.Delete(t.Context(), access.Owner(access.SystemID), own.ID); err != nil {
				t.Error(err)
			}
		}
		limit()
		if _, err := w.CreateOfShape(t.Context(), shape); !errs.HasCode(err, what) || s.build == nil {
			t.Errorf("another of hatchd's own: %v", err)
		}
		if _, err := w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(300), DiskMiB: new(300)}}); !errs.HasCode(err, what) || s.build == nil {
			t.Errorf("one that finds no room anyway: %v", err)
		}
		v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256), DiskMiB: new(256)}})
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		w.memMiB, w.diskMiB = 16<<10, nil
	}
}

// A VM that can boot ends no build in order to be cloned.
func TestCloneEvictsNoBuild(t *testing.T) {
	w, s := newWarmWorld(t)
	shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateOfShape(t.Context(), shape); err != nil {
		t.Fatal(err)
	}
	s.build = func() { t.Error("the build was ended") }
	w.memMiB = 256 + 512
	if v := mustCreate(t, w, vm.CreateRequest{}); v.Machine.IsBased() {
		t.Errorf("it is %+v", v.Machine)
	}
}

// A booted guest's memory that finds no room costs no owner a VM.
func TestVMBootsWhenACloneWouldNeedMore(t *testing.T) {
	w, _ := newWarmWorld(t)
	w.memMiB = 512
	w.calls.FailNext("Base")
	v := mustCreate(t, w, vm.CreateRequest{})
	if v.Machine.IsBased() || !w.calls.Withdraw("Base") {
		t.Errorf("it is %+v, or was read", v.Machine)
	}
	if held := w.snapshotFiles.Bases(); len(held) != 0 {
		t.Errorf("held is %+v", held)
	}
}

func TestWarmSnapshotsAreEvictedBeforeAVMIsRefused(t *testing.T) {
	w, s := newWarmWorld(t)
	asked := 0
	w.diskMiB = func() (int64, error) {
		asked++
		if _, err := os.Stat(w.snapshotFiles.Dir(s.snap.ID)); err == nil || asked > 2 {
			return 0, errs.New(errs.Exhausted, "disk_full", "the host's disk is full")
		}
		return 1 << 20, nil
	}
	v := mustCreate(t, w, vm.CreateRequest{})
	if v.Machine.IsBased() {
		t.Error("it is a copy of what is gone")
	}
	if _, err := w.Create(context.Background(), owner, vm.CreateRequest{}); !errs.HasCode(err, "disk_full") {
		t.Errorf("when none is left: %v", err)
	}
}

func TestWarmSnapshotsAreEvictedBeforeTheDiskIsFull(t *testing.T) {
	for call, take := range map[string]func(w *world, id, snapshotID string) error{
		"Provision": func(w *world, _, _ string) error {
			_, err := w.Create(t.Context(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
			return err
		},
		"Prepare": func(w *world, id, _ string) error {
			_, err := w.Sleep(t.Context(), access.Owner(owner), id)
			return err
		},
		"Stage": func(w *world, id, snapshotID string) error {
			_, err := w.Restore(t.Context(), access.Owner(owner), id, snapshotID)
			return err
		},
	} {
		t.Run(call, func(t *testing.T) {
			w, _ := newWarmWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
			snap := w.take(t, v.ID, "kept", vm.SnapshotRequest{Automatic: true})
			for _, warm := range []bool{true, false} {
				w.calls.Fail(call, 1, errs.New(errs.Exhausted, "disk_full", "the host's disk is full"))
				err := take(w, v.ID, snap.ID)
				switch {
				case warm && err != nil:
					t.Errorf("there was something to remove: %v", err)
				case !warm && !errs.HasCode(err, "disk_full"):
					t.Errorf("nothing was left to remove: %v", err)
				}
				if call == "Prepare" && warm {
					if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.requireSnapshots(t, snap.ID)
		})
	}
}
