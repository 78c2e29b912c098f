//go:build system

package e2e

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// written is how many MiB a guest writes and removes.
const written = 48

// testTrim checks that the host gets back space of its disk that a guest has freed, at
// the latest when the VM sleeps or a snapshot is taken, and that zeros take no space.
func testTrim(t *testing.T, w *world) {
	body := minimal()
	body.DiskMiB = new(4 * written)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	defer w.delete(t, v.ID)
	disk := w.data("vms", v.ID, "disk.img")
	fresh := spaceOf(t, disk)
	write := func(from string) {
		t.Helper()
		w.inside(t, v, fmt.Sprintf("dd if=%s of=/root/large bs=1M count=%d 2>/dev/null && sync", from, written))
	}
	requireSpace := func(when, of string, least, most int64) {
		t.Helper()
		if got := spaceOf(t, of) - fresh; got < least || got > most {
			t.Errorf("%s it uses %d MiB more than before, want %d to %d", when, got, least, most)
		}
	}
	write("/dev/zero")
	requireSpace("with a file of zeros", disk, 0, written/2)
	write("/dev/urandom")
	requireSpace("with a large file", disk, written-1, 2*written)
	if v.VMM != "qemu" {
		return // Firecracker's disks have no discard
	}
	w.inside(t, v, "rm /root/large")
	w.sleep(t, v)
	requireSpace("asleep", disk, -written, written/2)
	w.wake(t, v)

	write("/dev/urandom")
	w.inside(t, v, "rm /root/large")
	snap, err := w.client.CreateSnapshot(t.Context(), v.ID, api.CreateSnapshot{})
	if err != nil {
		t.Fatal(err)
	}
	requireSpace("after a snapshot", disk, -written, written/2)
	requireSpace("the snapshot", w.data("snapshots", snap.ID, "disk.img"), -written, written/2)
	if err := w.client.DeleteSnapshot(t.Context(), snap.ID); err != nil {
		t.Error(err)
	}
}

// spaceOf returns the space that a file takes, in MiB.
func spaceOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("cannot find %s: %v", path, err)
	}
	return st.Blocks * 512 >> 20
}
