package lifecycle_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// requireOwn checks that each VM runs as a machine of its own.
func (w *world) requireOwn(t *testing.T, vms []vm.VM) {
	t.Helper()
	seen := map[string]string{}
	for _, v := range vms {
		for what, value := range map[string]string{"MAC": v.Lease.MAC.String(), "address": v.Lease.Address.String(), "hostname": v.Hostname()} {
			if twin := seen[what+value]; twin != "" {
				t.Errorf("%s and %s have the same %s %s", twin, v.ID, what, value)
			}
			seen[what+value] = v.ID
		}
		now := get(t, w, v.ID)
		if now.State != vm.Running || now.Machine == nil || !now.Machine.IsBased() || !now.Provisioned {
			t.Errorf("%s is %s, machine %+v", v.ID, now.State, now.Machine)
		}
	}
}

// as returns who the guest of a VM was told to be; nil if it was not.
func (w *world) as(id string) *vm.Identity {
	if g := w.guests.Session(id); g != nil {
		return g.Identity
	}
	return nil
}

func TestForkIsReidentified(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{Labels: map[string]string{"of": "parent"}}})
	w.writeDisk(t, parent.ID, "shared past")
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 3, Name: "fork"})
	if err != nil || len(forks.VMs) != 3 || len(forks.Failed) != 0 {
		t.Fatalf("forks: %+v, %v", forks, err)
	}
	w.requireOwn(t, forks.VMs)
	for i, v := range forks.VMs {
		if v.Name != []string{"fork-1", "fork-2", "fork-3"}[i] || v.Labels["of"] != "parent" || v.SnapshotID != "" {
			t.Errorf("fork %d is %+v", i, v)
		}
		as := w.as(v.ID)
		if as == nil || as.Hostname != v.Name || as.MAC.String() != v.Lease.MAC.String() || as.Address.Addr() != v.Lease.Address || as.Setup != vm.SetupNone {
			t.Errorf("%s was told to be %+v", v.ID, as)
		}
		if as.InstanceID != parent.ID {
			t.Errorf("the cloud-init of %s is that of %s, not of its parent", v.ID, as.InstanceID)
		}
		w.requireDisk(t, v.ID, "shared past")
	}
	w.writeDisk(t, forks.VMs[0].ID, "a life of its own")
	w.requireDisk(t, parent.ID, "shared past")
	if now := get(t, w, parent.ID); now.State != vm.Running {
		t.Errorf("the parent is %s", now.State)
	}
	w.requireSnapshots(t)
}

func TestGuestHasTheRequestedHostname(t *testing.T) {
	w := newWorld(t)
	requireHostname := func(v vm.VM, want string) {
		t.Helper()
		if args := v.Cmdline(v.Lease.Address, 24); v.Hostname() != want || !slices.Contains(strings.Fields(args), "hatch.hostname="+want) {
			t.Errorf("%s is %s, and its command line %q; want %s", v.ID, v.Hostname(), args, want)
		}
		if link := w.network.Links()[v.ID]; link.Hostname != want {
			t.Errorf("DHCP tells %s that it is %s", v.ID, link.Hostname)
		}
	}
	given := mustCreate(t, w, vm.CreateRequest{Name: "web", Overrides: machine.Overrides{Hostname: new("DB-1.example.com")}})
	requireHostname(given, "DB-1.example.com")
	requireHostname(mustCreate(t, w, vm.CreateRequest{Name: "named"}), "named")
	unnamed := mustCreate(t, w, vm.CreateRequest{})
	requireHostname(unnamed, "vm-"+strings.TrimPrefix(unnamed.ID, vm.IDPrefix))

	forks, err := w.Fork(t.Context(), owner, given.ID, vm.CloneRequest{Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	w.requireOwn(t, forks.VMs)
	for _, v := range forks.VMs {
		requireHostname(v, "vm-"+strings.TrimPrefix(v.ID, vm.IDPrefix))
	}
	snap := w.take(t, given.ID, "kept", vm.SnapshotRequest{})
	if snap.VM.Hostname != given.Hostname() {
		t.Errorf("the snapshot is of %s", snap.VM.Hostname)
	}
	made, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1, Overrides: machine.Overrides{Hostname: new("db-2")}})
	if err != nil {
		t.Fatal(err)
	}
	if as := w.as(made.VMs[0].ID); as == nil || as.Hostname != "db-2" || made.VMs[0].Hostname() != "db-2" {
		t.Errorf("the clone is %+v, and was told to be %+v", made.VMs[0], as)
	}
}

const (
	keyA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICj9akMgZa1DEuhNgu/wxar4AuGZ5w1HTyvAyzuArVgT a"
	keyB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICj9akMgZa1DEuhNgu/wxar4AuGZ5w1HTyvAyzuArVgT b"
)

// Keys are added to what the guest has; its parent's user data is not done again.
func TestForkGetsKeys(t *testing.T) {
	w := newWorld(t)
	data := "#!/bin/sh\n"
	parent := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{UserData: &data, SSHKeys: []string{keyA}}})
	for _, keys := range [][]string{{keyB}, {}, nil} {
		forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1, Overrides: machine.Overrides{SSHKeys: keys}})
		if err != nil {
			t.Fatal(err)
		}
		want, setup := keys, vm.SetupNone
		if keys == nil {
			want = parent.SSHKeys
		}
		if len(keys) > 0 {
			setup = vm.SetupKeys
		}
		v := get(t, w, forks.VMs[0].ID)
		if as := w.as(v.ID); as == nil || as.Setup != setup || as.InstanceID != parent.ID {
			t.Errorf("with %q it was told to be %+v", keys, as)
		}
		if v.UserData != data || len(v.SSHKeys) != len(want) || (len(want) > 0 && v.SSHKeys[0] != want[0]) {
			t.Errorf("with %q it has the user data %q and the keys %q", keys, v.UserData, v.SSHKeys)
		}
	}
}

func TestForkSleepsAndIsForked(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	child := forks.VMs[0]
	if forks, err = w.Fork(t.Context(), owner, child.ID, vm.CloneRequest{Count: 1}); err != nil {
		t.Fatal(err)
	}
	w.requireOwn(t, []vm.VM{child, forks.VMs[0]})
	snap := w.take(t, child.ID, "kept", vm.SnapshotRequest{})
	for range 2 {
		if _, err := w.Sleep(t.Context(), access.Owner(owner), child.ID); err != nil {
			t.Fatal(err)
		}
		woken, err := w.Wake(t.Context(), access.Owner(owner), child.ID)
		if err != nil || woken.Machine.IsBased() {
			t.Fatalf("woken: %+v, %v", woken.Machine, err)
		}
	}
	if _, err := w.Restore(t.Context(), access.Owner(owner), child.ID, snap.ID); err != nil {
		t.Fatal(err)
	}
}

func TestUnconfirmedCloneIsDestroyed(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	w.calls.FailNext("Reidentify")
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 2})
	if err != nil || len(forks.VMs) != 1 || len(forks.Failed) != 1 || !errs.HasCode(forks.Failed[0], "copy_not_confirmed") {
		t.Fatalf("forks: %+v, %v", forks, err)
	}
	for _, call := range []string{"Reidentify", "Wake", "Attach", "Open", "Make", "Console", "Provision"} {
		w.calls.FailNext(call)
		if forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1}); err == nil {
			t.Errorf("%s: it did not fail: %+v", call, forks)
		}
		if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != 2 {
			t.Errorf("%s: there are %d VMs, %v", call, len(all), err)
		}
	}
	for _, v := range []string{parent.ID, forks.VMs[0].ID} {
		if err := w.Delete(t.Context(), access.Owner(owner), v); err != nil {
			t.Fatal(err)
		}
	}
	w.requireNothing(t)
	w.requireSnapshots(t)
}

// requireStuck returns the only VM that failed, of which a process is left whose
// guest has no identity of its own. No operation reaches that.
func (w *world) requireStuck(t *testing.T) vm.VM {
	t.Helper()
	failed, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{State: vm.Failed})
	if err != nil || len(failed) != 1 || failed[0].Machine == nil || failed[0].Unconfirmed == "" {
		t.Fatalf("there are %+v, %v", failed, err)
	}
	id := failed[0].ID
	for what, do := range map[string]func() error{
		"start":  func() error { _, err := w.Start(t.Context(), access.Owner(owner), id); return err },
		"stop":   func() error { _, err := w.Stop(t.Context(), access.Owner(owner), id); return err },
		"resume": func() error { _, err := w.Resume(t.Context(), access.Owner(owner), id); return err },
		"sleep":  func() error { _, err := w.Sleep(t.Context(), access.Owner(owner), id); return err },
		"wake":   func() error { _, err := w.Wake(t.Context(), access.Owner(owner), id); return err },
		"snapshot": func() error {
			_, err := w.Snapshot(t.Context(), access.Owner(owner), id, vm.SnapshotRequest{})
			return err
		},
		"fork": func() error { _, err := w.Fork(t.Context(), owner, id, vm.CloneRequest{Count: 1}); return err },
	} {
		if err := do(); !errs.HasCode(err, "vm_half_copied") {
			t.Errorf("%s: %v", what, err)
		}
	}
	return failed[0]
}

// stuckFork is a fork that has not confirmed, and whose VMM could not be ended.
func (w *world) stuckFork(t *testing.T, parent vm.VM) vm.VM {
	t.Helper()
	w.calls.FailNext("Reidentify")
	w.calls.FailNext("Kill")
	if _, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "copy_not_confirmed") {
		t.Errorf("it did not fail: %v", err)
	}
	return w.requireStuck(t)
}

func TestACloneThatCannotBeEndedIsUnusable(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	stuck := w.stuckFork(t, parent)
	w.calls.FailNext("Kill")
	if err := w.Delete(t.Context(), access.Owner(owner), stuck.ID); err == nil {
		t.Error("it was deleted while its VMM lives")
	}
	if err := w.Delete(t.Context(), access.Owner(owner), stuck.ID); err != nil {
		t.Error(err)
	}
	stuck = w.stuckFork(t, parent)
	w.shut(t)
	w.failAdopts(2) // of both machines
	w.serve(t)
	w.requireStuck(t)
	w.shut(t)
	w.serve(t)
	if _, err := w.Get(t.Context(), access.Owner(owner), stuck.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), parent.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

func TestVMsAreClonedFromASnapshot(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, parent.ID, "kept", vm.SnapshotRequest{})
	if err := w.Delete(t.Context(), access.Owner(owner), parent.ID); err != nil {
		t.Fatal(err)
	}
	data := "#!/bin/sh\n"
	made, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 2, Overrides: machine.Overrides{UserData: &data}})
	if err != nil || len(made.VMs) != 2 {
		t.Fatalf("made: %+v, %v", made, err)
	}
	w.requireOwn(t, made.VMs)
	for _, v := range made.VMs {
		if as := w.as(v.ID); as == nil || as.Setup != vm.SetupAnew || as.InstanceID != v.ID {
			t.Errorf("%s was told to be %+v", v.ID, as)
		}
		if v.UserData != data || v.SnapshotID != snap.ID {
			t.Errorf("it is %+v", v)
		}
		w.requireDisk(t, v.ID, "kept")
	}
	flip(t, w.snapshotFiles.Dir(snap.ID)+"/disk.img")
	if _, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "snapshot_unusable") {
		t.Errorf("from one that is damaged: %v", err)
	}
	if err := w.snapshots.Delete(t.Context(), access.Owner(owner), snap.ID); err != nil {
		t.Fatal(err)
	}
}

func TestBadCloneRequestsAreRefused(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	for field, req := range map[string]vm.CloneRequest{
		"count": {Count: 0},
		"name":  {Count: 1, Name: "Not a hostname"},
	} {
		if _, err := w.Fork(t.Context(), owner, parent.ID, req); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := w.CreateFrom(t.Context(), owner, "snap_none", vm.CloneRequest{Count: 1}); !errs.HasCode(err, "invalid_snapshot_id") {
		t.Errorf("from none: %v", err)
	}
	w.requireSnapshots(t)
}

// The daemon is killed after a copy's machine was started and before it has
// confirmed.
func TestPartialCloneIsRemoved(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	child := forks.VMs[0]
	w.shut(t)
	w.change(t, child.ID, func(v *vm.VM) {
		v.State, v.Provisioned, v.Machine, v.Unconfirmed = vm.Starting, false, nil, vm.FromSnapshot
	})
	w.serve(t)
	if _, err := w.Get(t.Context(), access.Owner(owner), child.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("it is still there: %v", err)
	}
	requireAwake(t, w, parent)
}

// A caller that leaves during the copying of the guest's memory aborts nothing,
// and leaves nothing.
func TestForkWhoseCallerDisconnects(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	w.calls.Before("CaptureEphemeral", func() { leave(); <-left })
	_, err := w.Fork(ctx, owner, parent.ID, vm.CloneRequest{Count: 1})
	close(left)
	if !errs.HasCode(err, "still_working") {
		t.Fatalf("got %v", err)
	}
	all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{})
	if err != nil || len(all) != 2 {
		t.Fatalf("there are %v, %v", all, err)
	}
	child := all[0]
	if child.ID == parent.ID {
		child = all[1]
	}
	child, err = w.Start(t.Context(), access.Owner(owner), child.ID) // once it is made, as it is
	if err != nil {
		t.Fatal(err)
	}
	w.shut(t) // which waits for the end of all
	w.requireSnapshots(t)
	w.serve(t)
	w.requireOwn(t, []vm.VM{child})
}

func TestRefusedForkDoesNotTouchTheGuest(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	w.calls.FailNext("Save")
	if _, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1, Name: "Not a hostname"}); !errs.HasCode(err, "invalid_name") {
		t.Errorf("got %v", err)
	}
	if !w.calls.Withdraw("Save") {
		t.Error("its guest was made to stand")
	}
}

func (w *world) requireVMs(t *testing.T, want int) {
	t.Helper()
	if all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{}); err != nil || len(all) != want {
		t.Errorf("there are %d VMs, want %d: %+v, %v", len(all), want, all, err)
	}
}

func TestForkWithoutCapacityDoesNotTouchTheGuest(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(5 << 10)}}) // of 16 GiB
	w.calls.FailNext("Save")
	if _, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 3}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	if !w.calls.Withdraw("Save") {
		t.Error("its guest was made to stand")
	}
	w.requireVMs(t, 1)
	if forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 2}); err != nil || len(forks.VMs) != 2 {
		t.Errorf("there is room for two: %+v, %v", forks, err)
	}
	w.requireSnapshots(t)
}

func TestForkThatCannotCaptureLeavesNothing(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	w.calls.FailNext("Save")
	if _, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 3}); err == nil {
		t.Error("it did not fail")
	}
	w.requireVMs(t, 1)
	w.requireSnapshots(t)
}

// A request that was repeated while the first was running, and lost the race, leaves
// nothing and does not make the guest stand; the clones of the first stay.
func TestRepeatedForkIsMadeOnce(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	ctx := idempotency.With(t.Context(), idempotency.Request{Owner: owner, Key: "k", Hash: "h"})
	if _, err := w.Fork(ctx, owner, parent.ID, vm.CloneRequest{Count: 2}); err != nil {
		t.Fatal(err)
	}
	w.calls.FailNext("Save")
	if _, err := w.Fork(ctx, owner, parent.ID, vm.CloneRequest{Count: 2}); !errs.HasCode(err, idempotency.CodeUsed) {
		t.Errorf("again: %v", err)
	}
	if !w.calls.Withdraw("Save") {
		t.Error("its guest was made to stand")
	}
	w.requireVMs(t, 3)
	w.requireSnapshots(t)
}

// The key of a fork that failed is free again.
func TestFailedForkFreesItsKey(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	ctx := idempotency.With(t.Context(), idempotency.Request{Owner: owner, Key: "k", Hash: "h"})
	w.calls.FailNext("Wake")
	if _, err := w.Fork(ctx, owner, parent.ID, vm.CloneRequest{Count: 1}); err == nil {
		t.Fatal("it did not fail")
	}
	if _, err := w.Fork(ctx, owner, parent.ID, vm.CloneRequest{Count: 1}); err != nil {
		t.Error(err)
	}
}

// Copies that are under way when hatchd ends are made; no other is begun.
func TestNoCloneStartsOnceHatchdStops(t *testing.T) {
	const atOnce = 4
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	under, goOn := make(chan struct{}), make(chan struct{})
	w.calls.Before("Wake", func() {
		select {
		case under <- struct{}{}:
		case <-goOn:
		}
		<-goOn
	})
	type outcome struct {
		forks vm.Clones
		err   error
	}
	ended := make(chan outcome)
	go func() {
		forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: atOnce + 2})
		ended <- outcome{forks, err}
	}()
	for range atOnce {
		<-under
	}
	closed := make(chan struct{})
	go func() { defer close(closed); w.shut(t) }()
	<-w.Closing()
	close(goOn)
	o := <-ended
	<-closed
	if o.err != nil || len(o.forks.VMs) != atOnce || len(o.forks.Failed) != 2 || !errs.HasCode(o.forks.Failed[0], "shutting_down") {
		t.Errorf("made: %+v, %v", o.forks, o.err)
	}
	w.serve(t)
	w.requireVMs(t, atOnce+1)
	w.requireSnapshots(t)
}

// The memory of a snapshot is read once there is a place for a VM.
func TestNoMemoryIsReadForClonesBeyondCapacity(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(9 << 10)}})
	snap := w.take(t, parent.ID, "kept", vm.SnapshotRequest{})
	w.calls.FailNext("Base")
	if _, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 2}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	if !w.calls.Withdraw("Base") {
		t.Error("it was read")
	}
}

func TestSnapshotOfAnotherKernelIsRefused(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	snap := w.take(t, parent.ID, "kept", vm.SnapshotRequest{})
	if err := os.WriteFile(w.image.Kernel.Path, []byte("another one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateFrom(t.Context(), owner, snap.ID, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "snapshot_unusable") {
		t.Errorf("got %v", err)
	}
}

// A machine woken from a base does not use its file in RAM: what a save that
// failed has put there is given back.
func TestFailedSaveFreesTheRAMOfAFork(t *testing.T) {
	w := newWorld(t)
	parent := mustCreate(t, w, vm.CreateRequest{})
	forks, err := w.Fork(t.Context(), owner, parent.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	child := forks.VMs[0]
	requireEmpty := func(when string) {
		t.Helper()
		if used, err := w.memories.Used(child.ID); err != nil || used != 0 {
			t.Errorf("%s: %d bytes of RAM are left filled, %v", when, used, err)
		}
	}
	w.calls.FailNext("UpdateVM")
	if _, err := w.Sleep(t.Context(), access.Owner(owner), child.ID); err == nil {
		t.Fatal("the sleep did not fail")
	}
	requireEmpty("after a sleep that failed")
	if want := 64<<20 + child.Machine.Base.Bytes; w.prepared != want {
		t.Errorf("there was to be room for %d bytes, not for the %d that its VMM holds and shares", w.prepared, want)
	}
	for what, save := range map[string]func() error{
		"sleep": func() error { _, err := w.Sleep(t.Context(), access.Owner(owner), child.ID); return err },
		"snapshot": func() error {
			_, err := w.Snapshot(t.Context(), access.Owner(owner), child.ID, vm.SnapshotRequest{})
			return err
		},
		"fork": func() error { _, err := w.Fork(t.Context(), owner, child.ID, vm.CloneRequest{Count: 1}); return err },
	} {
		w.calls.FailNext("CanHold")
		w.calls.FailNext("Save")
		if err := save(); err == nil || !w.calls.Withdraw("Save") {
			t.Errorf("%s: its guest was made to stand for what RAM cannot hold: %v", what, err)
		}
	}
	fill := func() {
		if err := os.WriteFile(w.memories.Path(child.ID), []byte("half of a save"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	w.calls.FailNext("Save")
	if _, err := w.Snapshot(t.Context(), access.Owner(owner), child.ID, vm.SnapshotRequest{}); err == nil {
		t.Fatal("the snapshot did not fail")
	}
	requireEmpty("after a snapshot that failed")
	fill()
	w.shut(t)
	w.serve(t)
	requireEmpty("after a daemon that ended during a save")
}

// What a create leaves that failed can be deleted by the caller that asked for a guest to
// keep.
func TestFailedWarmGuestHasAnID(t *testing.T) {
	w := newWorld(t)
	if err := w.store.InsertUser(t.Context(), access.User{ID: access.SystemID, CreatedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w.calls.FailNext("Make")
	v, err := w.CreateOfShape(t.Context(), shape)
	if err == nil || v.ID == "" {
		t.Fatalf("made: %+v, %v", v, err)
	}
	if err := w.Delete(t.Context(), access.Owner(access.SystemID), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
}

// VMs of any user are cloned from it: no login may have changed it.
func TestWarmGuestHasNoOpenPort(t *testing.T) {
	w := newWorld(t)
	if err := w.store.InsertUser(t.Context(), access.User{ID: access.SystemID, CreatedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	shape, err := w.ShapeFor(t.Context(), owner, vm.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := w.CreateOfShape(t.Context(), shape)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // also not after it was adopted
		if forwards := w.forwards.VMs(); len(forwards) > 0 {
			t.Errorf("these are open: %v", forwards)
		}
		w.shut(t)
		w.serve(t)
	}
	if _, err := w.SnapshotWarm(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
}
