//go:build system

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// kept is a guest that snapshots are taken of. A program in it counts, in its
// memory, how often it was asked.
type kept struct {
	*world
	vm     api.VM
	boot   string
	others []string // directories of snapshots that were there before
}

// The program that counts. It hands over each number once, so that nobody sees
// an earlier one.
const (
	startCounting = "mkdir -p /mem && mount -t tmpfs mem /mem && mkfifo /mem/ask /mem/say && " +
		"{ n=0; while read line </mem/ask; do n=$((n+1)); echo $n >/mem/say; done; }"
	askToCount = "echo >/mem/ask && cat /mem/say"
)

// keptBallast is what the guest of testSnapshots has in its memory, in MiB.
const keptBallast = 48

// keepNone has hatchd keep no guests of its own accord.
const keepNone = "HATCH_WARM=off"

// testSnapshots keeps one guest again and again, and lets it and others go on
// from there.
func testSnapshots(t *testing.T, w *world) {
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, keepNone)
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	body := minimal()
	body.Name, body.MemMiB = "kept", new(2*minimalMem)
	g := newKept(t, w, body, keptBallast)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *kept)
	}{
		{"while a program writes", testSnapshotAmidWrites},
		{"an older one after newer ones", testRestoreOlder},
		{"damaged ones are refused", testDamagedSnapshots},
		{"hatchd is killed", testSnapshotsOverKills},
		{"fork", testFork},
		{"a fork without room", testForkWithoutRoom},
		{"the disk becomes full", testSnapshotOnFullDisk},
		{"limits", testSnapshotLimits},
		{"stop", testSnapshotStop},
		{"the vm is gone", testSnapshotOutlivesVM},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, g) })
	}
	g.deleteSnapshots(t)
}

// newKept makes a guest that counts, with so many MiB in its memory, so that
// keeping it takes a moment.
func newKept(t *testing.T, w *world, body api.CreateVM, ballast int) *kept {
	t.Helper()
	g := &kept{world: w, vm: w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})}
	g.others = g.directories(t)
	g.boot = g.bootID(t)
	if _, err := w.client.StartExec(t.Context(), g.vm.ID, api.RunExec{Command: api.Command{Shell: startCounting}}); err != nil {
		t.Fatal(err)
	}
	g.awaitInside(t, g.vm, "test -p /mem/say")
	w.inside(t, g.vm, fmt.Sprintf("dd if=/dev/urandom of=/mem/ballast bs=1M count=%d", ballast))
	return g
}

func (g *kept) bootID(t *testing.T) string {
	t.Helper()
	return g.inside(t, g.vm, "cat /proc/sys/kernel/random/boot_id")
}

// awaitInside waits until a line in a guest goes well.
func (w *world) awaitInside(t *testing.T, v api.VM, line string) {
	t.Helper()
	err := sandbox.Poll(normalReply, func() (bool, error) {
		r, err := w.client.RunExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: line}})
		return err == nil && r.ExitCode == 0, err
	})
	if err != nil {
		t.Fatalf("%q does not come true: %v", line, err)
	}
}

// countOn asks a guest's counting program once.
func (w *world) countOn(t *testing.T, v api.VM) int {
	t.Helper()
	n, err := strconv.Atoi(w.inside(t, v, askToCount))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (g *kept) take(t *testing.T, body api.CreateSnapshot) api.Snapshot {
	t.Helper()
	began := time.Now()
	one, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, body)
	if err != nil {
		t.Fatalf("cannot take a snapshot: %v", err)
	}
	t.Logf("snapshot of %d MiB after %s", one.SizeBytes>>20, time.Since(began).Round(time.Millisecond))
	if !one.Durable || !one.Compatibility.Usable || one.Checksums.Memory == "" || one.VMID != g.vm.ID {
		t.Errorf("it is %+v", one)
	}
	return one
}

func (g *kept) restore(t *testing.T, id string) {
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

// requireUnharmed checks that the guest goes on as if nothing had happened
// since it last counted.
func (g *kept) requireUnharmed(t *testing.T, counted int) {
	t.Helper()
	if now := g.get(t, g.vm.ID); now.State != api.StateRunning {
		t.Fatalf("the VM is %s (%s)", now.State, now.StateReason)
	}
	if got := g.bootID(t); got != g.boot {
		t.Errorf("the guest has booted anew: %s, was %s", got, g.boot)
	}
	if got := g.countOn(t, g.vm); got != counted+1 {
		t.Errorf("it has counted to %d after %d", got, counted)
	}
}

func (g *kept) snapshots(t *testing.T) []string {
	t.Helper()
	list, err := g.client.ListSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(list))
	for i, one := range list {
		ids[i] = one.ID
	}
	return ids
}

// directories lists what there is of snapshots on the disk, but for what was
// there before.
func (g *kept) directories(t *testing.T) []string {
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

// requireSnapshots checks that there are these, in the list and, after a moment
// for what is being removed, on the disk.
func (g *kept) requireSnapshots(t *testing.T, want []string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	if got := slices.Sorted(slices.Values(g.snapshots(t))); !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
	var got []string
	if err := sandbox.Poll(normalReply, func() (bool, error) {
		got = slices.Sorted(slices.Values(g.directories(t)))
		return slices.Equal(got, want), nil
	}); err != nil {
		t.Errorf("on the disk there are %v, want %v", got, want)
	}
}

func (g *kept) deleteSnapshots(t *testing.T) {
	t.Helper()
	for _, id := range g.snapshots(t) {
		if err := g.client.DeleteSnapshot(t.Context(), id); err != nil {
			t.Errorf("cannot delete %s: %v", id, err)
		}
	}
	g.requireSnapshots(t, nil)
}

// testSnapshotAmidWrites keeps a guest that writes to its disk all the time.
func testSnapshotAmidWrites(t *testing.T, g *kept) {
	writer, err := g.client.StartExec(t.Context(), g.vm.ID, api.RunExec{Command: api.Command{
		Shell: "while :; do dd if=/dev/urandom of=/busy bs=64k count=16 conv=fsync && mv /busy /busy.last; done",
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.awaitInside(t, g.vm, "test -e /busy.last")
	one := g.take(t, api.CreateSnapshot{})
	requireSound(t, g.data("snapshots", one.ID, "disk.img"))
	g.restore(t, one.ID)
	if err := g.client.DeleteExec(t.Context(), g.vm.ID, writer.ID); err != nil {
		t.Errorf("the program that wrote is not there: %v", err)
	}
	g.inside(t, g.vm, "rm -f /busy*; sync")
	g.sleep(t, g.vm)
	requireSound(t, g.data("vms", g.vm.ID, "disk.img"))
	g.wake(t, g.vm)
}

// requireSound checks a file system as its next mount would find it: with its
// journal played back, on a copy.
func requireSound(t *testing.T, disk string) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("cp", "--sparse=always", disk, copied).CombinedOutput(); err != nil {
		t.Fatalf("cannot copy the disk: %v\n%s", err, out)
	}
	out, err := exec.Command("e2fsck", "-y", "-E", "journal_only", copied).CombinedOutput()
	if err != nil && exitCode(err) != 1 { // 1: it was played back
		t.Fatalf("cannot play the journal back: %v\n%s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-f", "-n", copied).CombinedOutput(); err != nil {
		t.Errorf("the file system is not sound: %v\n%s", err, out)
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func testRestoreOlder(t *testing.T, g *kept) {
	g.inside(t, g.vm, "echo one >/kept") // not synced: it is in memory, and counts all the same
	n := g.countOn(t, g.vm)
	older := g.take(t, api.CreateSnapshot{Name: "older"})
	g.inside(t, g.vm, "echo two >/kept; sync")
	g.countOn(t, g.vm)
	middle := g.take(t, api.CreateSnapshot{})
	newest := g.take(t, api.CreateSnapshot{})
	if middle.ParentID != older.ID || newest.ParentID != middle.ID {
		t.Errorf("the parents are %q and %q", middle.ParentID, newest.ParentID)
	}
	g.restore(t, older.ID)
	if got := g.inside(t, g.vm, "cat /kept"); got != "one" {
		t.Errorf("the older one holds %q", got)
	}
	g.requireUnharmed(t, n)
	requireTime(t, func() string { return g.inside(t, g.vm, "date +%s") })
	g.restore(t, "")
	if got := g.inside(t, g.vm, "cat /kept"); got != "two" {
		t.Errorf("the newest one holds %q", got)
	}
	g.requireUnharmed(t, n+1)
}

// testDamagedSnapshots damages each part of a snapshot in two ways.
func testDamagedSnapshots(t *testing.T, g *kept) {
	one := g.take(t, api.CreateSnapshot{})
	counted := g.countOn(t, g.vm)
	vms := len(vmms(t))
	for _, part := range []string{"memory", "disk.img", "devices"} {
		for how, damage := range map[string]func(*testing.T, string){"flipped": flipByte, "cut": cutShort} {
			t.Run(part+" "+how, func(t *testing.T) {
				path := g.data("snapshots", one.ID, part)
				defer setAside(t, path)()
				damage(t, path)
				_, err := g.client.RestoreVM(t.Context(), g.vm.ID, one.ID)
				requireUnusable(t, "restore", err)
				_, err = g.client.CreateVM(t.Context(), api.CreateVM{SnapshotID: one.ID}, client.CreateOptions{})
				requireUnusable(t, "create", err)
				g.requireUnharmed(t, counted)
				counted++
				if now := len(vmms(t)); now != vms {
					t.Errorf("%d VMMs run, before it were %d", now, vms)
				}
			})
		}
	}
	g.restore(t, one.ID) // it was the damage
}

func requireUnusable(t *testing.T, what string, err error) {
	t.Helper()
	if !client.HasCode(err, "snapshot_unusable") && !client.HasCode(err, "saved_unusable") {
		t.Errorf("%s: %v", what, err)
	}
}

// setAside puts a copy in the place of a file, until mend is called.
func setAside(t *testing.T, path string) (mend func()) {
	t.Helper()
	aside := path + ".aside"
	rename(t, path, aside)
	if out, err := exec.Command("cp", "--preserve=all", "--sparse=always", aside, path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return func() { rename(t, aside, path) }
}

// copyFile copies a file with its times and its holes.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--preserve=all", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// flipByte changes one byte that is not in a hole.
func flipByte(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const within = 100 // bytes
	at, err := f.Seek(within, unix.SEEK_DATA)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, at); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x10
	if _, err := f.WriteAt(one, at); err != nil {
		t.Fatal(err)
	}
}

func cutShort(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-1); err != nil {
		t.Fatal(err)
	}
}

// testSnapshotsOverKills kills hatchd at rest, and while it takes a snapshot.
func testSnapshotsOverKills(t *testing.T, g *kept) {
	one := g.take(t, api.CreateSnapshot{})
	counted, before := g.countOn(t, g.vm), g.snapshots(t)
	g.stopDaemon(t, syscall.SIGKILL)
	g.startDaemon(t, keepNone)
	g.requireSnapshots(t, before)
	g.restore(t, one.ID)
	g.requireUnharmed(t, counted-1)

	g.killAmidst(t, len(before))
	g.requireSnapshots(t, before)
	g.await(t, g.vm.ID, "agent", normalReply)
	g.requireUnharmed(t, counted)
	g.restore(t, one.ID)
}

// killAmidst kills hatchd while it takes a snapshot, and starts it again.
func (g *kept) killAmidst(t *testing.T, there int) {
	t.Helper()
	const tries = 5
	for range tries {
		ended := make(chan error, 1)
		go func() {
			_, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{Name: "amidst"})
			ended <- err
		}()
		if err := sandbox.Poll(normalReply, func() (bool, error) { return len(g.directories(t)) > there, nil }); err != nil {
			t.Fatalf("no snapshot is taken: %v", err)
		}
		g.stopDaemon(t, syscall.SIGKILL)
		err := <-ended
		g.startDaemon(t, keepNone)
		if err != nil {
			return
		}
		if err := g.client.DeleteSnapshot(t.Context(), "amidst"); err != nil { // it was quicker than we
			t.Fatal(err)
		}
	}
	t.Fatalf("of %d snapshots each was taken before hatchd was killed", tries)
}

// forkCount is how many forks are made of one VM at once.
const forkCount = 8

func testFork(t *testing.T, g *kept) {
	before := g.look(t)
	g.inside(t, g.vm, "echo parent >/kept")
	n := g.countOn(t, g.vm)
	end := g.drawWhenRenamed(t, g.vm)
	began := time.Now()
	made, err := g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Count: new(forkCount), Name: "child"})
	if err != nil {
		t.Fatal(err)
	}
	took(t, strconv.Itoa(forkCount)+" forks", began)
	for _, v := range made.VMs {
		t.Cleanup(func() { g.cleanUp(t, v.ID) })
	}
	if len(made.VMs) != forkCount || len(made.Failed) != 0 {
		t.Fatalf("made %d, failed: %+v", len(made.VMs), made.Failed)
	}
	end()
	all := append(slices.Clone(made.VMs), g.vm)
	requireDistinct(t, all)
	g.requireRightTime(t, all...)
	g.requireOwnDraws(t, g.vm, made.VMs)
	g.requireShared(t, made.VMs)
	for _, v := range made.VMs {
		g.requireItself(t, v)
		g.inside(t, v, "test $(cat /kept) = parent && echo "+v.Name+" >/kept; sync")
	}
	for i, v := range made.VMs {
		for by := range i + 1 {
			if got := g.countOn(t, v); got != n+by+1 {
				t.Errorf("%s has counted to %d, want %d", v.Name, got, n+by+1)
			}
		}
		if got := g.inside(t, v, "cat /kept"); got != v.Name {
			t.Errorf("the file of %s holds %q", v.Name, got)
		}
	}
	g.requireUnharmed(t, n)
	if got := g.inside(t, g.vm, "cat /kept"); got != "parent" {
		t.Errorf("the parent's file holds %q", got)
	}
	child := made.VMs[0]
	g.sleep(t, child)
	g.awaitDurable(t, child.ID)
	g.wake(t, child)
	if got := g.countOn(t, child); got != n+2 {
		t.Errorf("after a sleep %s has counted to %d, want %d", child.Name, got, n+2)
	}
	g.requireItself(t, child)
	for _, v := range made.VMs {
		g.delete(t, v.ID)
	}
	g.requireOnly(t, before)
}

// requireShared checks that copies have their ballast, and that the host has it
// once for all of them.
func (g *kept) requireShared(t *testing.T, vms []api.VM) {
	t.Helper()
	const look = "md5sum /mem/ballast"
	ballast := g.inside(t, g.vm, look)
	for _, v := range vms {
		if got := g.inside(t, v, look); got != ballast {
			t.Errorf("the ballast of %s is %q, and the parent's %q", v.Name, got, ballast)
		}
	}
	var resident, proportional int // KiB
	for _, v := range vms {
		p := vmm(t, v)
		rss, pss := p.rollup(t, "Rss:"), p.rollup(t, "Pss:")
		resident, proportional = resident+rss, proportional+pss
	}
	t.Logf("the VMMs of %d copies have %d MiB resident, %d MiB in proportion to who shares it", len(vms), resident>>10, proportional>>10)
	if least := (len(vms) - 1) * keptBallast << 10; proportional == 0 || resident-proportional < least {
		t.Errorf("copies share no more than %d KiB, and %d of their ballast are right", resident-proportional, least)
	}
}

// testForkWithoutRoom asks for more than the host has, where a fork shares memory
// that an earlier hatchd has made. It wants a host of less than 120 GiB.
func testForkWithoutRoom(t *testing.T, g *kept) {
	made, err := g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Name: "sharer"})
	if err != nil {
		t.Fatal(err)
	}
	sharer := made.VMs[0]
	t.Cleanup(func() { g.cleanUp(t, sharer.ID) })
	g.stopDaemon(t, syscall.SIGKILL)
	g.startDaemon(t, keepNone, "HATCH_MEM_OVERCOMMIT=0.1")
	defer func() {
		g.stopDaemon(t, syscall.SIGTERM)
		g.startDaemon(t, keepNone)
	}()
	counted, before := g.countOn(t, g.vm), g.look(t)
	_, err = g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Count: new(64)})
	if !client.HasCode(err, "memory_exhausted") {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
	// That is the kept guest's memory, about to be shared, and the sharer's.
	if shared := sharedMiB.FindStringSubmatch(err.Error()); shared == nil {
		t.Error("it does not say what copies share")
	} else if n, err := strconv.Atoi(shared[1]); err != nil || n < 2*keptBallast {
		t.Errorf("what copies share takes %s MiB", shared[1])
	}
	g.requireOnly(t, before)
	g.requireUnharmed(t, counted)
	if made, err = g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{}); err != nil {
		t.Fatalf("there is room for one: %v", err)
	}
	g.delete(t, made.VMs[0].ID)
	g.delete(t, sharer.ID)
}

// sharedMiB finds what copies share in the words of a refusal.
var sharedMiB = regexp.MustCompile(`what copies share takes (\d+),`)

// requireItself checks that a guest is what its record says, and that its
// network is its own.
func (w *world) requireItself(t *testing.T, v api.VM) {
	t.Helper()
	if got := w.inside(t, v, "hostname"); got != v.Name {
		t.Errorf("the hostname of %s is %q", v.Name, got)
	}
	if got := w.inside(t, v, "cat /sys/class/net/eth0/address"); !strings.EqualFold(got, v.GuestMAC) {
		t.Errorf("%s has the MAC %s, want %s", v.Name, got, v.GuestMAC)
	}
	if got := w.inside(t, v, "ip -4 addr show eth0"); !strings.Contains(got, "inet "+v.GuestIP+"/") {
		t.Errorf("%s does not have the address %s: %s", v.Name, v.GuestIP, got)
	}
	if got := w.inside(t, v, "nc -w 5 "+internetAddr+" 80 </dev/null"); got != "hello "+uplinkAddr {
		t.Errorf("the internet greets %s with %q", v.Name, got)
	}
}

func testSnapshotLimits(t *testing.T, g *kept) {
	g.deleteSnapshots(t)
	g.stopDaemon(t, syscall.SIGTERM)
	g.startDaemon(t, keepNone, "HATCH_MAX_SNAPSHOTS_PER_VM=3")
	defer func() {
		g.stopDaemon(t, syscall.SIGTERM)
		g.startDaemon(t, keepNone)
	}()
	oldest := g.take(t, api.CreateSnapshot{Automatic: true})
	later := g.take(t, api.CreateSnapshot{Automatic: true})
	named := g.take(t, api.CreateSnapshot{Name: "named"})
	second := g.take(t, api.CreateSnapshot{})
	g.requireSnapshots(t, []string{later.ID, named.ID, second.ID})
	third := g.take(t, api.CreateSnapshot{})
	g.requireSnapshots(t, []string{named.ID, second.ID, third.ID})
	counted := g.countOn(t, g.vm)
	if _, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{}); !client.HasCode(err, "snapshot_limit") {
		t.Errorf("a fourth manual one: %v", err)
	}
	if err := g.client.DeleteSnapshot(t.Context(), third.ID); err != nil {
		t.Error(err)
	}
	if _, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{Name: "named"}); !client.HasCode(err, "name_taken") {
		t.Errorf("a second of the same name: %v", err)
	}
	if _, err := g.client.GetSnapshot(t.Context(), oldest.ID); !client.IsNotFound(err) {
		t.Errorf("the one that made room: %v", err)
	}
	if err := g.client.DeleteSnapshot(t.Context(), "named"); err != nil {
		t.Error(err)
	}
	g.requireSnapshots(t, []string{second.ID})
	g.requireUnharmed(t, counted)
}

func testSnapshotStop(t *testing.T, g *kept) {
	g.inside(t, g.vm, "echo stopped >/kept; sync")
	p, counted := vmm(t, g.vm), g.countOn(t, g.vm)
	one := g.take(t, api.CreateSnapshot{Stop: true})
	if now := g.get(t, g.vm.ID); now.State != api.StateSnapshotted || now.SnapshotID != one.ID {
		t.Errorf("after a snapshot with stop it is %s, of %q", now.State, now.SnapshotID)
	}
	p.awaitExit(t, normalReply)
	g.wake(t, g.vm)
	g.requireUnharmed(t, counted)

	if _, err := g.client.StopVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	requireSound(t, g.data("vms", g.vm.ID, "disk.img"))
	if _, err := g.client.StartVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	g.await(t, g.vm.ID, "ready", readyLimit)
	if got := g.inside(t, g.vm, "cat /kept; ls /mem 2>/dev/null; true"); got != "stopped" {
		t.Errorf("after a cold start it shows %q; the disk is wanted, and no memory", got)
	}
	if g.bootID(t) == g.boot {
		t.Error("it has not booted anew: the test shows nothing")
	}
	if _, err := g.client.StopVM(t.Context(), g.vm.ID); err != nil {
		t.Fatal(err)
	}
	g.restore(t, one.ID) // of a VM that is stopped
	g.requireUnharmed(t, counted)
}

// testSnapshotOutlivesVM makes a VM of a snapshot whose own VM is deleted.
func testSnapshotOutlivesVM(t *testing.T, g *kept) {
	counted := g.countOn(t, g.vm)
	one := g.take(t, api.CreateSnapshot{Name: "left"})
	g.delete(t, g.vm.ID)
	before := g.look(t)
	v := g.create(t, api.CreateVM{SnapshotID: "left", Name: "again"}, client.CreateOptions{})
	if v.SnapshotID != one.ID || v.MemMiB != 2*minimalMem || v.ImageID != minimalID {
		t.Errorf("it is %+v", v)
	}
	g.requireItself(t, v)
	if got := g.countOn(t, v); got != counted+1 {
		t.Errorf("it has counted to %d after %d", got, counted)
	}
	g.delete(t, v.ID)
	g.requireOnly(t, before)
}
