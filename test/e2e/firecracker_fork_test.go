//go:build system

package e2e

import (
	"encoding/hex"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// requireStored checks what a guest has stored: words in its memory, each with MiB
// generated from it, and a word on its disk.
func (w *world) requireStored(t *testing.T, v api.VM, disk string, words ...string) {
	t.Helper()
	if got, want := w.inside(t, v, "kept"), "kept: "+strings.Join(words, " "); got != want {
		t.Errorf("the memory of %s has %q, want %q", v.ID, got, want)
	}
	if got := w.inside(t, v, "read hatch-disk 6"); got != "read: "+disk {
		t.Errorf("the disk of %s has %q, want %s", v.ID, got, disk)
	}
}

// store has a guest store a word in its memory and one on its disk.
func (w *world) store(t *testing.T, v api.VM, word, disk string) {
	t.Helper()
	for line, want := range map[string]string{"keep " + word + " 4": "keep: ok", "write hatch-disk " + disk: "write: ok"} {
		if got := w.inside(t, v, line); got != want {
			t.Fatalf("%q is answered %q", line, got)
		}
	}
}

// requireProbeIdentity checks that a guest has the name and the addresses of its VM.
func (w *world) requireProbeIdentity(t *testing.T, v api.VM) {
	t.Helper()
	identity := strings.Fields(w.inside(t, v, "who"))
	if len(identity) != 4 {
		t.Fatalf("%s reports its identity as %q", v.ID, identity)
	}
	name := v.Name
	if name == "" {
		name = strings.ReplaceAll(v.ID, "_", "-")
	}
	address, _, _ := strings.Cut(identity[2], "/")
	if got, want := []string{identity[1], address, strings.ToLower(identity[3])}, []string{name, v.GuestIP, strings.ToLower(v.GuestMAC)}; !slices.Equal(got, want) {
		t.Errorf("%s has the identity %v, want %v", v.ID, got, want)
	}
}

// testProbeForks makes three forks of a guest, and a fork of a fork.
func testProbeForks(t *testing.T, w *world) {
	v := w.probe(t)
	w.store(t, v, "parent", "PARENT")
	count := w.count(t, v)
	made, err := w.client.ForkVM(t.Context(), v.ID, api.ForkVM{Count: new(3), Name: "child"})
	for _, c := range made.VMs {
		t.Cleanup(func() { w.cleanUp(t, c.ID) })
	}
	if err != nil || len(made.VMs) != 3 {
		t.Fatalf("made %d; failed are %+v, %v", len(made.VMs), made.Failed, err)
	}
	requireDistinct(t, append(slices.Clone(made.VMs), v))
	counts := map[string]int{v.ID: count}
	for _, c := range made.VMs {
		counts[c.ID] = w.requireProgress(t, c, count)
		w.requireProbeIdentity(t, c)
		w.requireStored(t, c, "PARENT", "parent")
		w.store(t, c, c.Name, strings.ToUpper(strings.ReplaceAll(c.Name, "-", ""))) // six letters, as before
	}
	w.requireStored(t, v, "PARENT", "parent")
	w.requireProbeIdentity(t, v)
	w.requireOwnFrames(t, made.VMs[0], v)

	w.sleep(t, made.VMs[1])
	w.awaitDurable(t, made.VMs[1].ID)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	w.wake(t, made.VMs[1])
	for _, c := range made.VMs {
		w.await(t, c.ID, "agent", normalReply)
		w.requireProgress(t, c, counts[c.ID])
		w.requireProbeIdentity(t, c)
		w.requireStored(t, c, strings.ToUpper(strings.ReplaceAll(c.Name, "-", "")), "parent", c.Name)
	}
	w.requireProgress(t, v, count)
	again, err := w.client.ForkVM(t.Context(), made.VMs[2].ID, api.ForkVM{}) // a fork of a fork
	if err != nil || len(again.VMs) != 1 {
		t.Fatalf("a fork of a fork: %v, %+v", err, again)
	}
	w.requireProbeIdentity(t, again.VMs[0])
	w.requireProgress(t, again.VMs[0], counts[made.VMs[2].ID])
	for _, v := range append(made.VMs, again.VMs[0], v) {
		w.delete(t, v.ID)
	}
}

// requireOwnFrames checks that a fork can send with its own addresses, but not with
// its parent's.
func (w *world) requireOwnFrames(t *testing.T, forked, parent api.VM) {
	t.Helper()
	bridge, err := net.InterfaceByName("hatch0")
	if err != nil {
		t.Fatal(err)
	}
	asParent, asItself := forked.ID+" as its parent", forked.ID+" as itself"
	for _, f := range [][]byte{
		datagram(t, bridge.HardwareAddr, parent.GuestMAC, parent.GuestIP, asParent),
		datagram(t, bridge.HardwareAddr, forked.GuestMAC, forked.GuestIP, asItself),
	} {
		if got := w.inside(t, forked, "send "+hex.EncodeToString(f)); got != "send: ok" {
			t.Fatalf("the guest says %q", got)
		}
	}
	if err := sandbox.Poll(normalReply, func() (bool, error) { return w.internet.hasHeard(asItself), nil }); err != nil {
		t.Errorf("a fork's datagram with its own addresses does not arrive: %v", err)
	}
	if w.internet.hasHeard(asParent) {
		t.Error("a fork's datagram with its parent's addresses has left")
	}
}

// testProbeSnapshots restores snapshots in any order, also after a kill of hatchd,
// and clones VMs from them, also after their own VM was deleted.
func testProbeSnapshots(t *testing.T, w *world) {
	g := &countingGuest{world: w, vm: w.probe(t)}
	w.store(t, g.vm, "one", "DISK-1")
	first := w.count(t, g.vm)
	older := g.snapshot(t, api.CreateSnapshot{Name: "older"})
	w.store(t, g.vm, "two", "DISK-2")
	second := w.requireProgress(t, g.vm, first)
	newer := g.snapshot(t, api.CreateSnapshot{Name: "newer"})
	w.store(t, g.vm, "three", "DISK-3")

	g.restore(t, older.ID)
	w.requireStored(t, g.vm, "DISK-1", "one")
	w.requireProgress(t, g.vm, first)
	g.restore(t, newer.ID)
	w.requireStored(t, g.vm, "DISK-2", "one", "two")
	w.requireProgress(t, g.vm, second)
	w.requireProbeIdentity(t, g.vm)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	g.restore(t, older.ID)
	w.requireStored(t, g.vm, "DISK-1", "one")
	count := w.requireProgress(t, g.vm, first)
	for part, damage := range map[string]func(*testing.T, string){"memory": flipByte, "devices": cutShort, "disk.img": cutShort} {
		t.Run("damaged "+part, func(t *testing.T) { g.requireRefused(t, newer, part, damage) })
	}
	count = w.requireProgress(t, g.vm, count)

	made := w.create(t, api.CreateVM{SnapshotID: "older", Name: "made"}, client.CreateOptions{})
	requireDistinct(t, []api.VM{made, g.vm})
	w.requireProbeIdentity(t, made)
	w.requireStored(t, made, "DISK-1", "one")
	w.requireProgress(t, made, first)
	w.requireProgress(t, g.vm, count)
	g.testProbeStop(t)
	w.delete(t, g.vm.ID)
	late := w.create(t, api.CreateVM{SnapshotID: newer.ID}, client.CreateOptions{})
	w.requireProbeIdentity(t, late)
	w.requireStored(t, late, "DISK-2", "one", "two")
	w.requireProgress(t, late, second)
	w.delete(t, late.ID)
	w.delete(t, made.ID)
	g.deleteSnapshots(t)
}

// requireRefused damages one file of a snapshot, which must not be restored or cloned
// then.
func (g *countingGuest) requireRefused(t *testing.T, snap api.Snapshot, part string, damage func(*testing.T, string)) {
	t.Helper()
	path := g.data("snapshots", snap.ID, part)
	defer setAside(t, path)()
	damage(t, path)
	_, err := g.client.RestoreVM(t.Context(), g.vm.ID, snap.ID)
	requireUnusable(t, "restore with a damaged "+part, err)
	_, err = g.client.CreateVM(t.Context(), api.CreateVM{SnapshotID: snap.ID}, client.CreateOptions{})
	requireUnusable(t, "create with a damaged "+part, err)
}

// testProbeStop takes a snapshot and leaves the VM asleep on it.
func (g *countingGuest) testProbeStop(t *testing.T) {
	t.Helper()
	count := g.count(t, g.vm)
	snap := g.snapshot(t, api.CreateSnapshot{Stop: true})
	if now := g.get(t, g.vm.ID); now.State != api.StateSnapshotted || now.SnapshotID != snap.ID {
		t.Errorf("after a snapshot with stop it is %s, of %q", now.State, now.SnapshotID)
	}
	if left := g.jails(t); len(left) > 1 { // made's
		t.Errorf("the sleeping VM has left %v", left)
	}
	g.wake(t, g.vm)
	g.requireProgress(t, g.vm, count)
}
