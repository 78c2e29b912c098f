package vm_test

import (
	"context"
	"os"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// shelf is a vm.Warm with one guest.
type shelf struct {
	w      *world
	one    snapshot.Snapshot
	inUse  int
	missed []vm.Shape

	spoiled int
	build   func() // deletes a VM of hatchd's own; nil: there is none
	idle    func() // lets go of memory that nobody uses; nil: there is none
}

func (s *shelf) Find(ctx context.Context, shape vm.Shape, room func(context.Context) error) (vm.Warmth, bool) {
	if shape.Key() != vm.ShapeOf(s.one).Key() {
		return vm.Warmth{}, false
	}
	drop := s.w.snapshotFiles.HoldMemory(s.one.ID, s.one.Bytes)
	var memory *os.File
	err := room(ctx)
	if err == nil {
		memory, err = s.w.snapshotFiles.Base(ctx, s.one.ID)
	}
	if err != nil {
		drop()
		return vm.Warmth{}, false
	}
	s.inUse++
	return vm.Warmth{Snapshot: s.one, Memory: memory, Release: func() { s.inUse--; _ = memory.Close(); drop() }}, true
}

func (s *shelf) Missed(_ context.Context, shape vm.Shape) { s.missed = append(s.missed, shape) }

func (s *shelf) DropIdle(inUse map[uint64]bool) bool {
	if s.idle == nil {
		return false
	}
	s.idle()
	s.idle = nil
	return true
}

func (s *shelf) EndBuild(context.Context) bool {
	if s.build == nil {
		return false
	}
	s.build()
	s.build = nil
	return true
}

func (s *shelf) Spoiled(one snapshot.Snapshot, _ error) {
	if one.ID == s.one.ID {
		s.spoiled++
	}
}

// newWarmWorld is a world with a guest kept booted that VMs get by default.
func newWarmWorld(t *testing.T) (*world, *shelf) {
	t.Helper()
	w := newWorld(t)
	s := &shelf{w: w}
	w.shut(t)
	w.warm = s
	w.serve(t)
	shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	booted, err := w.CreateOfShape(t.Context(), shape)
	if err != nil || booted.OwnerID != access.SystemID {
		t.Fatalf("%+v, %v", booted, err)
	}
	w.writeDisk(t, booted.ID, "of the booted guest")
	if s.one, err = w.KeepWarm(t.Context(), booted.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), access.SystemID, booted.ID); err != nil {
		t.Fatal(err)
	}
	if !w.IsCurrent(t.Context(), vm.ShapeOf(s.one)) || vm.ShapeOf(s.one).Key() != shape.Key() {
		t.Fatalf("kept is %+v, wanted was %+v", vm.ShapeOf(s.one), shape)
	}
	if all, _, err := w.List(t.Context(), owner, vm.Filter{}); err != nil || len(all) != 0 {
		t.Fatalf("the owner sees %+v, %v", all, err)
	}
	w.requireNothing(t)
	return w, s
}

// A booted guest is of use for as long as a new VM would boot the same.
func TestAShapeIsCurrentUntilWhatItIsMadeOfChanges(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"another file of the image": func(w *world) { w.changeImage(t) },
		"no file of the image": func(w *world) {
			if err := os.Remove(w.image.Kernel.Path); err != nil {
				t.Fatal(err)
			}
		},
		"another agent":        func(w *world) { w.initramfs = "/another" },
		"no initramfs":         func(w *world) { w.failNext("Initramfs") },
		"another version":      func(w *world) { w.version = "2.0" },
		"a driver that is not": func(w *world) { w.shut(t); w.driverName = "other"; w.open(t) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{})
			if err != nil || !w.IsCurrent(t.Context(), shape) {
				t.Fatalf("it is not current as it is: %+v, %v", shape, err)
			}
			change(w)
			if w.IsCurrent(t.Context(), shape) {
				t.Error("it is taken for current")
			}
		})
	}
}

func TestANewVMBeginsAsABootedGuest(t *testing.T) {
	w, s := newWarmWorld(t)
	data := "#!/bin/sh\n"
	vms := []vm.VM{mustCreate(t, w, vm.CreateRequest{Name: "web", UserData: &data}), mustCreate(t, w, vm.CreateRequest{})}
	w.requireOwn(t, vms)
	for _, v := range vms {
		as := w.as(v.ID)
		if as == nil || as.Setup != vm.SetupAnew || as.InstanceID != v.ID || as.Hostname != v.Hostname() || as.Address.Addr() != v.Lease.Address {
			t.Errorf("%s was told to be %+v", v.ID, as)
		}
		if v.SnapshotID != "" || v.OwnerID != owner {
			t.Errorf("it is %+v", v)
		}
		w.requireDisk(t, v.ID, "of the booted guest")
	}
	if len(s.missed) != 0 || s.inUse != 0 {
		t.Errorf("missed %v, %d in use", s.missed, s.inUse)
	}
	other := mustCreate(t, w, vm.CreateRequest{MemMiB: ptr(256)})
	if w.as(other.ID) != nil || len(s.missed) != 1 || s.missed[0].MemMiB != 256 {
		t.Errorf("of another shape: %+v, missed %v", w.as(other.ID), s.missed)
	}
	for _, v := range append(vms, other) {
		if err := w.Delete(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
	}
	w.requireNothing(t)
}

func TestAVMBootsWhenItCannotBeACopy(t *testing.T) {
	w, s := newWarmWorld(t)
	for _, call := range []string{"Recast", "Wake", "Attach", "Open", "Make", "Console", "Provision"} {
		w.failNext(call)
		v := mustCreate(t, w, vm.CreateRequest{})
		if v.State != vm.Running || v.Machine.IsBased() || v.SnapshotID != "" || w.as(v.ID) != nil {
			t.Errorf("%s: it is %+v, told to be %+v", call, v, w.as(v.ID))
		}
		w.requireDisk(t, v.ID, "empty")
		if err := w.Delete(t.Context(), owner, v.ID); err != nil {
			t.Fatal(err)
		}
		w.requireNothing(t)
	}
	if len(s.missed) != 0 || s.inUse != 0 || s.spoiled != 2 {
		t.Errorf("missed %v, %d in use, spoiled %d times, not by Recast and Wake", s.missed, s.inUse, s.spoiled)
	}
	w.failNext("Recast")
	w.failNext("Kill")
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "copy_not_confirmed") {
		t.Errorf("a copy that cannot be ended: %v", err)
	}
	stuck := w.requireStuck(t)
	w.shut(t)
	w.serve(t) // which ends it
	now, err := w.Start(t.Context(), owner, stuck.ID)
	if err != nil || now.State != vm.Running || now.Machine.IsBased() {
		t.Fatalf("started it is %+v, %v", now, err)
	}
	w.requireDisk(t, stuck.ID, "empty")
}

// The daemon is killed before the copy has confirmed that it is the VM.
func TestAVMThatWasHalfACopyCanBeStarted(t *testing.T) {
	w, s := newWarmWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Name: "web"})
	w.shut(t)
	w.change(t, v.ID, func(v *vm.VM) {
		v.State, v.Provisioned, v.Machine, v.Copying = vm.Starting, false, nil, vm.OfWarm
	})
	if err := w.snapshots.Delete(t.Context(), access.SystemID, s.one.ID); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	if now := get(t, w, v.ID); now.State != vm.Failed || now.Copying != "" || now.Provisioned {
		t.Errorf("it is %+v", now)
	}
	w.requireNothing(t)
	now, err := w.Start(t.Context(), owner, v.ID)
	if err != nil || now.State != vm.Running || now.Machine.IsBased() {
		t.Fatalf("started it is %+v, %v", now, err)
	}
	w.requireDisk(t, v.ID, "empty")
}
