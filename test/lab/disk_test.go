//go:build lab

package lab

import (
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// TestFileSystems leads a guest's life with the data directory on file systems other
// than XFS, and fills them up.
func TestFileSystems(t *testing.T) {
	if testing.Short() {
		t.Skip("each boots a host of its own; make test-lab runs them")
	}
	for fileSystem, reflink := range map[string]string{"btrfs": "copies of disks share their blocks", "ext4": "no; whole disks are copied sparsely"} {
		t.Run(fileSystem, func(t *testing.T) {
			w := newWorld(t, Debian12, fileSystem, "minimal")
			empty := w.traces(t)
			if c := w.doctor(t)["reflink"]; c.Status != "pass" || !strings.Contains(c.Message, reflink) {
				t.Errorf("reflink: %s: %s", c.Status, c.Message)
			}
			testLife(t, w, "auto", "firecracker")
			testFullDisk(t, w)
			w.requireTraces(t, empty)
		})
	}
}

// testFullDisk fills the disk under a running guest: what needs room is refused, the
// guest goes on, and all works again once there is room.
func testFullDisk(t *testing.T, w *world) {
	v := w.create(t, "full", "auto")
	w.run(t, "fallocate -l $(($(df --output=avail -B1 /var/lib/hatch | tail -n 1) - (64<<20))) /var/lib/hatch/ballast")
	body := api.CreateVM{MachineSpec: api.MachineSpec{ImageID: minimalID, MemMiB: new(minimalMem), DiskMiB: new(128)}}
	if made, err := w.client.CreateVM(t.Context(), body, client.CreateOptions{}); !client.HasCode(err, "disk_full") {
		t.Errorf("a create gives %v", err)
		w.remove(t, made.ID)
	}
	if _, err := w.client.SleepVM(t.Context(), v.ID); !client.HasCode(err, "disk_full") {
		t.Errorf("a sleep gives %v", err)
	}
	w.inside(t, v.ID, "true")
	w.run(t, "systemctl restart hatchd")
	w.connect(t)
	w.run(t, "rm /var/lib/hatch/ballast && sync") // btrfs frees the room with its next commit
	w.do(t, "sleep", v.ID, api.StateSnapshotted, w.client.SleepVMDurably)
	w.inside(t, v.ID, "true")
	w.remove(t, v.ID)
}
