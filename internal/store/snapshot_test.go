package store

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// newSnapshot returns a snapshot with a value in every field.
func newSnapshot(id string) snapshot.Snapshot {
	v := newVM("vm_a")
	return snapshot.Snapshot{
		ID: id, OwnerID: "acc_a", VMID: "vm_a", Name: "name-" + id, Kind: snapshot.Manual, ParentID: "snap_parent",
		VM: snapshot.Origin{
			Spec: v.Spec, MAC: []byte{2, 0xFC, 0, 0, 0, 2}, Address: addr("10.9.0.2"),
		},
		Machine:   snapshot.Machine{Driver: "qemu", Version: "7.2", Accel: "kvm", CPU: "host"},
		CreatedAt: now(),
	}
}

func insertSnapshots(t testing.TB, s *Store, all ...snapshot.Snapshot) {
	t.Helper()
	anImage(t, s)
	for _, snap := range all {
		noError(t, insertSnapshotIn(t.Context(), s, snap))
	}
}

func TestSnapshots(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		a, b, c := newSnapshot("snap_a"), newSnapshot("snap_b"), newSnapshot("snap_c")
		b.Name, b.VM, b.CreatedAt = "snap_a", snapshot.Origin{Spec: machine.Spec{ImageID: "img_a"}}, a.CreatedAt.Add(time.Second) // named as the other's id
		c.OwnerID, c.Name, c.VMID, c.CreatedAt = "acc_b", a.Name, "vm_c", a.CreatedAt.Add(2*time.Second)                          // the same name is free for another owner
		insertSnapshots(t, s, a, b, c)

		for _, key := range []string{"snap_a", a.Name} { // the id wins over the other's name
			got, err := s.Snapshot(ctx, access.Owner("acc_a"), key)
			noError(t, err)
			equal(t, opened(t, got), a)
		}
		got, err := s.Snapshot(ctx, access.Everyone, "snap_c")
		noError(t, err)
		equal(t, opened(t, got), c)
		for _, key := range []string{"", "none", "\x00", "\xff", "snap_c"} {
			_, err = s.Snapshot(ctx, access.Owner("acc_a"), key)
			hasCode(t, err, errs.NotFound, "snapshot_not_found")
		}
		for _, list := range []struct {
			scope access.Scope
			of    snapshot.Filter
			want  []snapshot.Snapshot
		}{
			{access.Owner("acc_a"), snapshot.Filter{}, []snapshot.Snapshot{b, a}},
			{access.Everyone, snapshot.Filter{}, []snapshot.Snapshot{c, b, a}},
			{access.Everyone, snapshot.Filter{VMID: "vm_a"}, []snapshot.Snapshot{b, a}},
			{access.Owner(""), snapshot.Filter{}, []snapshot.Snapshot{}},
			{access.Owner("acc_b"), snapshot.Filter{VMID: "vm_a"}, []snapshot.Snapshot{}},
		} {
			got, err := s.Snapshots(ctx, list.scope, list.of)
			noError(t, err)
			for i := range list.want {
				list.want[i].VM.UserData = ""
				got[i].SealedUserData = nil
			}
			equal(t, got, list.want)
		}
		if got, err := s.Snapshots(ctx, access.Everyone, snapshot.Filter{VMID: "\x00"}); err != nil || len(got) > 0 {
			t.Errorf("of a VM that cannot be: %v, %v", got, err)
		}
	})
}

func TestInvalidSnapshots(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		insertSnapshots(t, s, newSnapshot("snap_a"))
		twin := newSnapshot("snap_b")
		twin.Name = "name-snap_a"
		hasCode(t, insertSnapshotIn(t.Context(), s, twin), errs.Conflict, "name_taken")
		twin.Name, twin.VM.ImageID = "", "img_none"
		hasCode(t, insertSnapshotIn(t.Context(), s, twin), errs.NotFound, "image_not_found")
		twin.VM.ImageID = "img_a"
		another := twin
		another.ID = "snap_c"
		insertSnapshots(t, s, twin, another) // two without a name do not collide
		hasCode(t, s.SealSnapshot(t.Context(), newSnapshot("snap_none")), errs.NotFound, "snapshot_not_found")
		noError(t, s.DeleteSnapshot(t.Context(), "snap_none"))
	})
}

func TestOnlyDurableSnapshotsHaveEvents(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := event.By(t.Context(), event.Rule)
		createVM(t, s, newVM("vm_a"))
		a, torn := newSnapshot("snap_a"), newSnapshot("snap_torn")
		insertSnapshots(t, s, a, torn)
		a.Durable, a.Bytes, a.Sums = true, 5<<20, snapshot.Sums{Devices: "sha256:1", Memory: "sha256:2", Disk: "sha256:3"}
		noError(t, s.SealSnapshot(ctx, a))
		got, err := s.Snapshot(ctx, access.Owner("acc_a"), "snap_a")
		noError(t, err)
		equal(t, opened(t, got), a)

		noError(t, s.DeleteSnapshot(ctx, "snap_torn"))
		noError(t, s.DeleteVM(ctx, "vm_a")) // the snapshot stays
		for range 2 {
			noError(t, s.DeleteSnapshot(ctx, "snap_a"))
		}
		if n := count(t, s, "snapshots"); n != 0 {
			t.Errorf("%d rows are left", n)
		}

		events, _, err := s.Events(ctx, event.Filter{Scope: access.Everyone, Types: []event.Pattern{"snapshot.*"}, Limit: 10})
		noError(t, err)
		if len(events) != 2 {
			t.Fatalf("got %d events: %+v", len(events), events)
		}
		for i, want := range []event.Event{
			{Type: event.SnapshotCreated, VMName: "name-a", Message: "snapshot name-snap_a (snap_a) was taken; it takes 5 MiB on disk"},
			{Type: event.SnapshotDeleted, Message: "snapshot name-snap_a (snap_a) was deleted"},
		} {
			got := events[i]
			if got.Type != want.Type || got.OwnerID != "acc_a" || got.VMID != "vm_a" || got.VMName != want.VMName || got.Message != want.Message || got.Actor.Kind != event.Rule {
				t.Errorf("event %d is %+v", i, got)
			}
			var data map[string]any
			noError(t, json.Unmarshal(got.Data, &data))
			equal(t, data, map[string]any{
				"snapshot_id": "snap_a", "name": "name-snap_a", "kind": "manual", "bytes": float64(5 << 20), "parent_id": "snap_parent",
			})
		}
	})
}

func TestImageOfASnapshotStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		insertSnapshots(t, s, newSnapshot("snap_a"))
		hasCode(t, s.DeleteImage(t.Context(), access.Owner("acc_a"), "img_a"), errs.Conflict, "image_in_use")
		noError(t, s.DeleteSnapshot(t.Context(), "snap_a"))
		noError(t, s.DeleteImage(t.Context(), access.Owner("acc_a"), "img_a"))
	})
}

func TestAVMKnowsItsSnapshotAndHowItSleeps(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		for _, staged := range []bool{true, false} {
			want := vm.Sleep{At: now(), Durable: true, Bytes: 7, Staged: staged}
			_, err := s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) {
				if v.Sleep != nil { // nothing else changes
					want.At = v.Sleep.At
				}
				v.State, v.Sleep, v.SnapshotID = vm.Snapshotted, &want, "snap_b"
			})
			noError(t, err)
			got, err := s.VM(t.Context(), access.Owner("acc_a"), "vm_a")
			noError(t, err)
			equal(t, *got.Sleep, want)
			equal(t, got.SnapshotID, "snap_b")
			page, _, err := s.VMs(t.Context(), access.Owner("acc_a"), vm.Filter{})
			noError(t, err)
			equal(t, page[0].SnapshotID, "snap_b")
			equal(t, *page[0].Sleep, want)
		}
	})
}

// opened returns a snapshot without what the store has encrypted.
func opened(t *testing.T, snap snapshot.Snapshot) snapshot.Snapshot {
	t.Helper()
	if (len(snap.SealedUserData) > 0) != (snap.VM.UserData != "") {
		t.Errorf("%s has user data %q, encrypted %q", snap.ID, snap.VM.UserData, snap.SealedUserData)
	}
	snap.SealedUserData = nil
	return snap
}

// insertSnapshotIn stores a snapshot.
func insertSnapshotIn(ctx context.Context, s *Store, snap snapshot.Snapshot) error {
	_, err := s.InsertSnapshot(ctx, snap)
	return err
}
