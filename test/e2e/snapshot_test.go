//go:build system

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// countingGuest is a guest of which snapshots are taken. A program in it keeps a
// counter in its memory.
type countingGuest struct {
	*world
	vm     api.VM
	boot   string
	others []string // directories of snapshots that existed before
}

// The counting program, and how to increment its counter. It hands out each number
// once, so that a reader cannot see an earlier one.
const (
	countingProgram = "mkdir -p /mem && mount -t tmpfs mem /mem && mkfifo /mem/ask /mem/say && " +
		"{ n=0; while read line </mem/ask; do n=$((n+1)); echo $n >/mem/say; done; }"
	incrementCounter = "echo >/mem/ask && cat /mem/say"
)

// ballastMiB is the size of a file in the memory of testSnapshots' guest.
const ballastMiB = 48

// warmOff keeps hatchd from making warm snapshots.
const warmOff = "HATCH_WARM=off"

// testSnapshots takes snapshots of one guest, restores them, and clones VMs from
// them.
func testSnapshots(t *testing.T, w *world) {
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, warmOff)
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	body := minimal()
	body.Name, body.MemMiB = "counting", new(2*minimalMem)
	g := newCountingGuest(t, w, body, ballastMiB)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *countingGuest)
	}{
		{"while a program writes", testSnapshotDuringWrites},
		{"an older snapshot after newer ones", testRestoreOlder},
		{"damaged snapshots are refused", testDamagedSnapshots},
		{"hatchd is killed", testSnapshotsOverKills},
		{"fork", testFork},
		{"forks beyond the capacity", testForkBeyondCapacity},
		{"the disk becomes full", testSnapshotOnFullDisk},
		{"limits", testSnapshotLimits},
		{"stop", testSnapshotStop},
		{"the vm is gone", testSnapshotOutlivesVM},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, g) })
	}
	g.deleteSnapshots(t)
}

// newCountingGuest makes a guest that counts, with a file of ballast MiB in its
// memory, so that a snapshot takes a moment.
func newCountingGuest(t *testing.T, w *world, body api.CreateVM, ballast int) *countingGuest {
	t.Helper()
	g := &countingGuest{world: w, vm: w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})}
	g.others = g.directories(t)
	g.boot = g.bootID(t)
	if _, err := w.client.StartExec(t.Context(), g.vm.ID, api.RunExec{Command: api.Command{Shell: countingProgram}}); err != nil {
		t.Fatal(err)
	}
	g.awaitInside(t, g.vm, "test -p /mem/say")
	w.inside(t, g.vm, fmt.Sprintf("dd if=/dev/urandom of=/mem/ballast bs=1M count=%d", ballast))
	return g
}

func (g *countingGuest) bootID(t *testing.T) string {
	t.Helper()
	return g.inside(t, g.vm, "cat /proc/sys/kernel/random/boot_id")
}

// awaitInside waits until a shell line succeeds in a guest.
func (w *world) awaitInside(t *testing.T, v api.VM, line string) {
	t.Helper()
	err := sandbox.Poll(normalReply, func() (bool, error) {
		r, err := w.client.RunExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: line}})
		return err == nil && r.ExitCode == 0, err
	})
	if err != nil {
		t.Fatalf("%q does not succeed: %v", line, err)
	}
}

// count asks a guest's counting program once.
func (w *world) increment(t *testing.T, v api.VM) int {
	t.Helper()
	n, err := strconv.Atoi(w.inside(t, v, incrementCounter))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (g *countingGuest) snapshot(t *testing.T, body api.CreateSnapshot) api.Snapshot {
	t.Helper()
	began := time.Now()
	snap, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, body)
	if err != nil {
		t.Fatalf("cannot take a snapshot: %v", err)
	}
	t.Logf("snapshot of %d MiB after %s", snap.SizeBytes>>20, time.Since(began).Round(time.Millisecond))
	if !snap.Durable || !snap.Compatibility.Usable || snap.Checksums.Memory == "" || snap.VMID != g.vm.ID {
		t.Errorf("it is %+v", snap)
	}
	return snap
}

func (g *countingGuest) restore(t *testing.T, id string) {
	t.Helper()
	began := time.Now()
	v, err := g.client.RestoreVM(t.Context(), g.vm.ID, id)
	if err != nil {
		t.Fatalf("cannot restore %q: %v", id, err)
	}
	took(t, "restore", began)
	if v.State != api.StateRunning || v.GuestIP != g.vm.GuestIP || v.SSHPort != g.vm.SSHPort || id != "" && v.SnapshotID != id {
		t.Errorf("restored it is %+v", v)
	}
	g.await(t, v.ID, "agent", normalReply)
}

// requireUnharmed checks that the guest runs on, with its counter as it was; it
// increments the counter.
func (g *countingGuest) requireUnharmed(t *testing.T, counter int) {
	t.Helper()
	if now := g.get(t, g.vm.ID); now.State != api.StateRunning {
		t.Fatalf("the VM is %s (%s)", now.State, now.StateReason)
	}
	if got := g.bootID(t); got != g.boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, g.boot)
	}
	if got := g.increment(t, g.vm); got != counter+1 {
		t.Errorf("the counter is %d after %d", got, counter)
	}
}

func (g *countingGuest) snapshots(t *testing.T) []string {
	t.Helper()
	list, err := g.client.ListSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(list))
	for i, snap := range list {
		ids[i] = snap.ID
	}
	return ids
}

// directories lists the snapshots' directories on the disk, without those that
// existed before.
func (g *countingGuest) directories(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(g.data("snapshots"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !slices.Contains(g.others, e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// requireSnapshots checks that these snapshots exist and no other, in the list
// and, once removals have ended, on the disk.
func (g *countingGuest) requireSnapshots(t *testing.T, want []string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	if got := slices.Sorted(slices.Values(g.snapshots(t))); !slices.Equal(got, want) {
		t.Errorf("the snapshots are %v, want %v", got, want)
	}
	var got []string
	if err := sandbox.Poll(normalReply, func() (bool, error) {
		got = slices.Sorted(slices.Values(g.directories(t)))
		return slices.Equal(got, want), nil
	}); err != nil {
		t.Errorf("the snapshots on the disk are %v, want %v", got, want)
	}
}

func (g *countingGuest) deleteSnapshots(t *testing.T) {
	t.Helper()
	for _, id := range g.snapshots(t) {
		if err := g.client.DeleteSnapshot(t.Context(), id); err != nil {
			t.Errorf("cannot delete %s: %v", id, err)
		}
	}
	g.requireSnapshots(t, nil)
}

// testSnapshotDuringWrites takes a snapshot of a guest that writes to its disk.
func testSnapshotDuringWrites(t *testing.T, g *countingGuest) {
	writer, err := g.client.StartExec(t.Context(), g.vm.ID, api.RunExec{Command: api.Command{
		Shell: "while :; do dd if=/dev/urandom of=/busy bs=64k count=16 conv=fsync && mv /busy /busy.last; done",
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.awaitInside(t, g.vm, "test -e /busy.last")
	snap := g.snapshot(t, api.CreateSnapshot{})
	requireSound(t, g.data("snapshots", snap.ID, "disk.img"))
	g.restore(t, snap.ID)
	if err := g.client.DeleteExec(t.Context(), g.vm.ID, writer.ID); err != nil {
		t.Errorf("the writing program does not run: %v", err)
	}
	g.inside(t, g.vm, "rm -f /busy*; sync")
	g.sleep(t, g.vm)
	requireSound(t, g.data("vms", g.vm.ID, "disk.img"))
	g.wake(t, g.vm)
}

// requireSound checks a file system as its next mount would find it: a copy, with
// its journal replayed.
func requireSound(t *testing.T, disk string) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("cp", "--sparse=always", disk, copied).CombinedOutput(); err != nil {
		t.Fatalf("cannot copy the disk: %v\n%s", err, out)
	}
	out, err := exec.Command("e2fsck", "-y", "-E", "journal_only", copied).CombinedOutput()
	if err != nil && exitCode(err) != 1 { // 1: it was replayed
		t.Fatalf("cannot replay the journal: %v\n%s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-f", "-n", copied).CombinedOutput(); err != nil {
		t.Errorf("the file system is not sound: %v\n%s", err, out)
	}
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

func testRestoreOlder(t *testing.T, g *countingGuest) {
	g.inside(t, g.vm, "echo one >/kept") // not synced: a snapshot has it in memory
	n := g.increment(t, g.vm)
	older := g.snapshot(t, api.CreateSnapshot{Name: "older"})
	g.inside(t, g.vm, "echo two >/kept; sync")
	g.increment(t, g.vm)
	middle := g.snapshot(t, api.CreateSnapshot{})
	newest := g.snapshot(t, api.CreateSnapshot{})
	if middle.ParentID != older.ID || newest.ParentID != middle.ID {
		t.Errorf("the parents are %q and %q", middle.ParentID, newest.ParentID)
	}
	g.restore(t, older.ID)
	if got := g.inside(t, g.vm, "cat /kept"); got != "one" {
		t.Errorf("the older snapshot has %q", got)
	}
	g.requireUnharmed(t, n)
	requireTime(t, func() string { return g.inside(t, g.vm, "date +%s") })
	g.restore(t, "")
	if got := g.inside(t, g.vm, "cat /kept"); got != "two" {
		t.Errorf("the newest snapshot has %q", got)
	}
	g.requireUnharmed(t, n+1)
}

// testDamagedSnapshots damages each part of a snapshot in two ways.
func testDamagedSnapshots(t *testing.T, g *countingGuest) {
	snap := g.snapshot(t, api.CreateSnapshot{})
	counter := g.increment(t, g.vm)
	vms := len(vmms(t))
	for _, part := range []string{"memory", "disk.img", "devices"} {
		for how, damage := range map[string]func(*testing.T, string){"flipped": flipByte, "cut": cutShort} {
			t.Run(part+" "+how, func(t *testing.T) {
				path := g.data("snapshots", snap.ID, part)
				defer setAside(t, path)()
				damage(t, path)
				_, err := g.client.RestoreVM(t.Context(), g.vm.ID, snap.ID)
				requireUnusable(t, "restore", err)
				_, err = g.client.CreateVM(t.Context(), api.CreateVM{SnapshotID: snap.ID}, client.CreateOptions{})
				requireUnusable(t, "create", err)
				g.requireUnharmed(t, counter)
				counter++
				if now := len(vmms(t)); now != vms {
					t.Errorf("%d VMMs run, before %d", now, vms)
				}
			})
		}
	}
	g.restore(t, snap.ID) // undamaged it works
}

func requireUnusable(t *testing.T, what string, err error) {
	t.Helper()
	if !client.HasCode(err, "snapshot_unusable") && !client.HasCode(err, "saved_unusable") {
		t.Errorf("%s: %v", what, err)
	}
}

// testSnapshotsOverKills kills hatchd while it is idle, and while it takes a
// snapshot.
func testSnapshotsOverKills(t *testing.T, g *countingGuest) {
	snap := g.snapshot(t, api.CreateSnapshot{})
	counter, before := g.increment(t, g.vm), g.snapshots(t)
	g.stopDaemon(t, syscall.SIGKILL)
	g.startDaemon(t, warmOff)
	g.requireSnapshots(t, before)
	g.restore(t, snap.ID)
	g.requireUnharmed(t, counter-1)

	g.killDuringSnapshot(t, len(before))
	g.requireSnapshots(t, before)
	g.await(t, g.vm.ID, "agent", normalReply)
	g.requireUnharmed(t, counter)
	g.restore(t, snap.ID)
}

// killDuringSnapshot kills hatchd while it takes a snapshot, and starts it again.
func (g *countingGuest) killDuringSnapshot(t *testing.T, existing int) {
	t.Helper()
	const tries = 5
	for range tries {
		ended := make(chan error, 1)
		go func() {
			_, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{Name: "killed"})
			ended <- err
		}()
		if err := sandbox.Poll(normalReply, func() (bool, error) { return len(g.directories(t)) > existing, nil }); err != nil {
			t.Fatalf("no snapshot is taken: %v", err)
		}
		g.stopDaemon(t, syscall.SIGKILL)
		err := <-ended
		g.startDaemon(t, warmOff)
		if err != nil {
			return
		}
		if err := g.client.DeleteSnapshot(t.Context(), "killed"); err != nil { // it was taken before the kill
			t.Fatal(err)
		}
	}
	t.Fatalf("all of %d snapshots were taken before hatchd was killed", tries)
}

func testSnapshotLimits(t *testing.T, g *countingGuest) {
	g.deleteSnapshots(t)
	g.stopDaemon(t, syscall.SIGTERM)
	g.startDaemon(t, warmOff, "HATCH_MAX_SNAPSHOTS_PER_VM=3")
	defer func() {
		g.stopDaemon(t, syscall.SIGTERM)
		g.startDaemon(t, warmOff)
	}()
	oldest := g.snapshot(t, api.CreateSnapshot{Automatic: true})
	later := g.snapshot(t, api.CreateSnapshot{Automatic: true})
	named := g.snapshot(t, api.CreateSnapshot{Name: "named"})
	second := g.snapshot(t, api.CreateSnapshot{})
	g.requireSnapshots(t, []string{later.ID, named.ID, second.ID})
	third := g.snapshot(t, api.CreateSnapshot{})
	g.requireSnapshots(t, []string{named.ID, second.ID, third.ID})
	counter := g.increment(t, g.vm)
	if _, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{}); !client.HasCode(err, "snapshot_limit") {
		t.Errorf("a fourth manual snapshot: %v", err)
	}
	if err := g.client.DeleteSnapshot(t.Context(), third.ID); err != nil {
		t.Error(err)
	}
	if _, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{Name: "named"}); !client.HasCode(err, "name_taken") {
		t.Errorf("a second snapshot of the same name: %v", err)
	}
	if _, err := g.client.GetSnapshot(t.Context(), oldest.ID); !client.IsNotFound(err) {
		t.Errorf("the evicted snapshot: %v", err)
	}
	if err := g.client.DeleteSnapshot(t.Context(), "named"); err != nil {
		t.Error(err)
	}
	g.requireSnapshots(t, []string{second.ID})
	g.requireUnharmed(t, counter)
}

func testSnapshotStop(t *testing.T, g *countingGuest) {
	g.inside(t, g.vm, "echo stopped >/kept; sync")
	p, counter := vmm(t, g.vm), g.increment(t, g.vm)
	snap := g.snapshot(t, api.CreateSnapshot{Stop: true})
	if now := g.get(t, g.vm.ID); now.State != api.StateSnapshotted || now.SnapshotID != snap.ID {
		t.Errorf("after a snapshot with stop it is %s, of %q", now.State, now.SnapshotID)
	}
	p.awaitExit(t, normalReply)
	g.wake(t, g.vm)
	g.requireUnharmed(t, counter)

	if _, err := g.client.StopVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	requireSound(t, g.data("vms", g.vm.ID, "disk.img"))
	if _, err := g.client.StartVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	g.await(t, g.vm.ID, "ready", readyLimit)
	if got := g.inside(t, g.vm, "cat /kept; ls /mem 2>/dev/null; true"); got != "stopped" {
		t.Errorf("after a cold start it shows %q; want its disk and no memory", got)
	}
	if g.bootID(t) == g.boot {
		t.Error("it has not rebooted: the test shows nothing")
	}
	if _, err := g.client.StopVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	g.restore(t, snap.ID) // of a stopped VM
	g.requireUnharmed(t, counter)
}

// testSnapshotOutlivesVM clones from a snapshot whose VM was deleted.
func testSnapshotOutlivesVM(t *testing.T, g *countingGuest) {
	counter := g.increment(t, g.vm)
	snap := g.snapshot(t, api.CreateSnapshot{Name: "left"})
	g.delete(t, g.vm.ID)
	before := g.traces(t)
	v := g.create(t, api.CreateVM{SnapshotID: "left", Name: "again"}, client.CreateOptions{})
	if v.SnapshotID != snap.ID || v.MemMiB != 2*minimalMem || v.ImageID != minimalID {
		t.Errorf("it is %+v", v)
	}
	g.requireIdentity(t, v)
	if got := g.increment(t, v); got != counter+1 {
		t.Errorf("the counter is %d after %d", got, counter)
	}
	g.delete(t, v.ID)
	g.requireTraces(t, before)
}
