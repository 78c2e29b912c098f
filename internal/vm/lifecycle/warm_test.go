package lifecycle_test

import (
	"context"
	"os"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// shelf is a vm.Warm with one guest.
type shelf struct {
	w      *world
	snap   snapshot.Snapshot
	inUse  int
	missed []vm.Shape

	spoiled int
	build   func() // deletes a VM of hatchd's own; nil: there is none
	idle    func() // frees memory that no machine maps; nil: there is none
}

func (s *shelf) Find(ctx context.Context, shape vm.Shape, room func(context.Context) error) (vm.WarmSnapshot, bool) {
	if shape.Key() != vm.ShapeOf(s.snap).Key() {
		return vm.WarmSnapshot{}, false
	}
	drop := s.w.snapshotFiles.PinMemory(s.snap.ID, s.snap.Bytes)
	var memory *os.File
	err := room(ctx)
	if err == nil {
		memory, err = s.w.snapshotFiles.Base(ctx, s.snap.ID)
	}
	if err != nil {
		drop()
		return vm.WarmSnapshot{}, false
	}
	s.inUse++
	return vm.WarmSnapshot{Snapshot: s.snap, Memory: memory, Release: func() { s.inUse--; _ = memory.Close(); drop() }}, true
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

func (s *shelf) Spoiled(_ context.Context, snap snapshot.Snapshot, _ error) {
	if snap.ID == s.snap.ID {
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
	if s.snap, err = w.SnapshotWarm(t.Context(), booted.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), access.Owner(access.SystemID), booted.ID); err != nil {
		t.Fatal(err)
	}
	if !w.IsCurrent(t.Context(), vm.ShapeOf(s.snap)) || vm.ShapeOf(s.snap).Key() != shape.Key() {
		t.Fatalf("kept is %+v, wanted was %+v", vm.ShapeOf(s.snap), shape)
	}
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 0 {
		t.Fatalf("the owner sees %+v, %v", all, err)
	}
	w.requireNothing(t)
	return w, s
}

// A booted guest is of use for as long as a new VM would boot the same.
func TestShapeIsCurrentUntilItsFilesChange(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"another file of the image": func(w *world) { w.changeImage(t) },
		"no file of the image": func(w *world) {
			if err := os.Remove(w.image.Kernel.Path); err != nil {
				t.Fatal(err)
			}
		},
		"another agent":        func(w *world) { w.initramfs = "/another" },
		"no initramfs":         func(w *world) { w.calls.FailNext("Initramfs") },
		"another version":      func(w *world) { w.driver.Version = "2.0" },
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

func TestNewVMIsClonedFromAWarmGuest(t *testing.T) {
	w, s := newWarmWorld(t)
	data := "#!/bin/sh\n"
	vms := []vm.VM{mustCreate(t, w, vm.CreateRequest{Name: "web", Overrides: machine.Overrides{UserData: &data}}), mustCreate(t, w, vm.CreateRequest{})}
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
	other := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}})
	if w.as(other.ID) != nil || len(s.missed) != 1 || s.missed[0].MemMiB != 256 {
		t.Errorf("of another shape: %+v, missed %v", w.as(other.ID), s.missed)
	}
	for _, v := range append(vms, other) {
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	w.requireNothing(t)
}

func TestVMBootsWhenItCannotBeCloned(t *testing.T) {
	w, s := newWarmWorld(t)
	for _, call := range []string{"Reidentify", "Wake", "Attach", "Open", "Make", "Console", "Provision"} {
		w.calls.FailNext(call)
		v := mustCreate(t, w, vm.CreateRequest{})
		if v.State != vm.Running || v.Machine.IsBased() || v.SnapshotID != "" || w.as(v.ID) != nil {
			t.Errorf("%s: it is %+v, told to be %+v", call, v, w.as(v.ID))
		}
		w.requireDisk(t, v.ID, fake.BlankDisk)
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		w.requireNothing(t)
	}
	if len(s.missed) != 0 || s.inUse != 0 || s.spoiled != 2 {
		t.Errorf("missed %v, %d in use, spoiled %d times, not by Reidentify and Wake", s.missed, s.inUse, s.spoiled)
	}
	w.calls.FailNext("Reidentify")
	w.calls.FailNext("Kill")
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, "copy_not_confirmed") {
		t.Errorf("a copy that cannot be ended: %v", err)
	}
	stuck := w.requireStuck(t)
	w.shut(t)
	w.serve(t) // which ends it
	now, err := w.Start(t.Context(), access.Owner(owner), stuck.ID)
	if err != nil || now.State != vm.Running || now.Machine.IsBased() {
		t.Fatalf("started it is %+v, %v", now, err)
	}
	w.requireDisk(t, stuck.ID, fake.BlankDisk)
}

// The daemon is killed before the copy has confirmed that it is the VM.
func TestPartiallyClonedVMCanBeStarted(t *testing.T) {
	w, s := newWarmWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Name: "web"})
	w.shut(t)
	w.change(t, v.ID, func(v *vm.VM) {
		v.State, v.Provisioned, v.Machine, v.Unconfirmed = vm.Starting, false, nil, vm.FromWarm
	})
	if err := w.snapshots.Delete(t.Context(), access.Owner(access.SystemID), s.snap.ID); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	if now := get(t, w, v.ID); now.State != vm.Failed || now.Unconfirmed != "" || now.Provisioned {
		t.Errorf("it is %+v", now)
	}
	w.requireNothing(t)
	now, err := w.Start(t.Context(), access.Owner(owner), v.ID)
	if err != nil || now.State != vm.Running || now.Machine.IsBased() {
		t.Fatalf("started it is %+v, %v", now, err)
	}
	w.requireDisk(t, v.ID, fake.BlankDisk)
}
