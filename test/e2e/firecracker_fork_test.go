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

// requireKept checks what a guest holds: words in its memory, each with MiB that
// follow from it, and one on its disk.
func (w *world) requireKept(t *testing.T, v api.VM, disk string, words ...string) {
	t.Helper()
	if got, want := w.inside(t, v, "kept"), "kept: "+strings.Join(words, " "); got != want {
		t.Errorf("the memory of %s says %q, want %q", v.ID, got, want)
	}
	if got := w.inside(t, v, "read hatch-disk 6"); got != "read: "+disk {
		t.Errorf("the disk of %s says %q, want %s", v.ID, got, disk)
	}
}

// keepWord has a guest keep a word in its memory and one on its disk.
func (w *world) keepWord(t *testing.T, v api.VM, word, disk string) {
	t.Helper()
	for line, want := range map[string]string{"keep " + word + " 4": "keep: ok", "write hatch-disk " + disk: "write: ok"} {
		if got := w.inside(t, v, line); got != want {
			t.Fatalf("%q is answered %q", line, got)
		}
	}
}

// requireProbeItself checks that a guest takes itself for what its record says.
func (w *world) requireProbeItself(t *testing.T, v api.VM) {
	t.Helper()
	said := strings.Fields(w.inside(t, v, "who"))
	if len(said) != 4 {
		t.Fatalf("%s says of itself %q", v.ID, said)
	}
	name := v.Name
	if name == "" {
		name = strings.ReplaceAll(v.ID, "_", "-")
	}
	address, _, _ := strings.Cut(said[2], "/")
	if got, want := []string{said[1], address, strings.ToLower(said[3])}, []string{name, v.GuestIP, strings.ToLower(v.GuestMAC)}; !slices.Equal(got, want) {
		t.Errorf("%s takes itself for %v, want %v", v.ID, got, want)
	}
}

// testProbeForks forks a guest thrice.
func testProbeForks(t *testing.T, w *world) {
	v := w.probe(t)
	w.keepWord(t, v, "parent", "PARENT")
	count := w.count(t, v)
	made, err := w.client.ForkVM(t.Context(), v.ID, api.ForkVM{Count: new(3), Name: "child"})
	for _, c := range made.VMs {
		t.Cleanup(func() { w.cleanUp(t, c.ID) })
	}
	if err != nil || len(made.VMs) != 3 {
		t.Fatalf("made %d, failed %+v, %v", len(made.VMs), made.Failed, err)
	}
	requireDistinct(t, append(slices.Clone(made.VMs), v))
	counts := map[string]int{v.ID: count}
	for _, c := range made.VMs {
		counts[c.ID] = w.goesOn(t, c, count)
		w.requireProbeItself(t, c)
		w.requireKept(t, c, "PARENT", "parent")
		w.keepWord(t, c, c.Name, strings.ToUpper(strings.ReplaceAll(c.Name, "-", ""))) // of six letters, too
	}
	w.requireKept(t, v, "PARENT", "parent")
	w.requireProbeItself(t, v)
	w.requireOwnFrames(t, made.VMs[0], v)

	w.sleep(t, made.VMs[1])
	w.awaitDurable(t, made.VMs[1].ID)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	w.wake(t, made.VMs[1])
	for _, c := range made.VMs {
		w.await(t, c.ID, "agent", normalReply)
		w.goesOn(t, c, counts[c.ID])
		w.requireProbeItself(t, c)
		w.requireKept(t, c, strings.ToUpper(strings.ReplaceAll(c.Name, "-", "")), "parent", c.Name)
	}
	w.goesOn(t, v, count)
	again, err := w.client.ForkVM(t.Context(), made.VMs[2].ID, api.ForkVM{}) // a fork of a fork
	if err != nil || len(again.VMs) != 1 {
		t.Fatalf("a fork of a fork: %v, %+v", err, again)
	}
	w.requireProbeItself(t, again.VMs[0])
	w.goesOn(t, again.VMs[0], counts[made.VMs[2].ID])
	for _, one := range append(made.VMs, again.VMs[0], v) {
		w.delete(t, one.ID)
	}
}

// requireOwnFrames checks that a fork can send as itself, and no longer as the VM
// that it was copied from.
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
		t.Errorf("what a fork sends as itself does not arrive: %v", err)
	}
	if w.internet.hasHeard(asParent) {
		t.Error("what a fork sends as its parent has left")
	}
}

// testProbeSnapshots goes back to snapshots in any order, also of a hatchd that
// was killed, and makes VMs of them, also once their own VM is gone.
func testProbeSnapshots(t *testing.T, w *world) {
	g := &kept{world: w, vm: w.probe(t)}
	w.keepWord(t, g.vm, "one", "DISK-1")
	first := w.count(t, g.vm)
	older := g.take(t, api.CreateSnapshot{Name: "older"})
	w.keepWord(t, g.vm, "two", "DISK-2")
	second := w.goesOn(t, g.vm, first)
	newer := g.take(t, api.CreateSnapshot{Name: "newer"})
	w.keepWord(t, g.vm, "three", "DISK-3")

	g.restore(t, older.ID)
	w.requireKept(t, g.vm, "DISK-1", "one")
	w.goesOn(t, g.vm, first)
	g.restore(t, newer.ID)
	w.requireKept(t, g.vm, "DISK-2", "one", "two")
	w.goesOn(t, g.vm, second)
	w.requireProbeItself(t, g.vm)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	g.restore(t, older.ID)
	w.requireKept(t, g.vm, "DISK-1", "one")
	count := w.goesOn(t, g.vm, first)
	for part, damage := range map[string]func(*testing.T, string){"memory": flipByte, "devices": cutShort, "disk.img": cutShort} {
		g.requireRefused(t, newer, part, damage)
	}
	count = w.goesOn(t, g.vm, count)

	made := w.create(t, api.CreateVM{SnapshotID: "older", Name: "made"}, client.CreateOptions{})
	requireDistinct(t, []api.VM{made, g.vm})
	w.requireProbeItself(t, made)
	w.requireKept(t, made, "DISK-1", "one")
	w.goesOn(t, made, first)
	w.goesOn(t, g.vm, count)
	g.testProbeStop(t)
	w.delete(t, g.vm.ID)
	late := w.create(t, api.CreateVM{SnapshotID: newer.ID}, client.CreateOptions{})
	w.requireProbeItself(t, late)
	w.requireKept(t, late, "DISK-2", "one", "two")
	w.goesOn(t, late, second)
	w.delete(t, late.ID)
	w.delete(t, made.ID)
	g.deleteSnapshots(t)
}

// requireRefused damages one file of a snapshot: nothing is made of it then, and
// no guest comes to harm.
func (g *kept) requireRefused(t *testing.T, one api.Snapshot, part string, damage func(*testing.T, string)) {
	t.Helper()
	path, aside := g.data("snapshots", one.ID, part), g.data("aside")
	copyFile(t, path, aside)
	damage(t, path)
	_, err := g.client.RestoreVM(t.Context(), g.vm.ID, one.ID)
	requireUnusable(t, "restore with a damaged "+part, err)
	_, err = g.client.CreateVM(t.Context(), api.CreateVM{SnapshotID: one.ID}, client.CreateOptions{})
	requireUnusable(t, "create with a damaged "+part, err)
	rename(t, aside, path)
}

// testProbeStop takes a snapshot and leaves the VM asleep on it.
func (g *kept) testProbeStop(t *testing.T) {
	t.Helper()
	count := g.count(t, g.vm)
	one := g.take(t, api.CreateSnapshot{Stop: true})
	if now := g.get(t, g.vm.ID); now.State != api.StateSnapshotted || now.SnapshotID != one.ID {
		t.Errorf("after a snapshot with stop it is %s, of %q", now.State, now.SnapshotID)
	}
	if left := g.jails(t); len(left) > 1 { // made's
		t.Errorf("the sleeping VM has left %v", left)
	}
	g.wake(t, g.vm)
	g.goesOn(t, g.vm, count)
}
