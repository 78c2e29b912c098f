//go:build system

package e2e

import (
	"strconv"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// testReclaim looks at what the host has of a guest's memory once the guest has
// freed it: at first, and after a sleep. A copy has its memory elsewhere, and
// nothing may come of its trying.
func testReclaim(t *testing.T, w *world) {
	body := minimal()
	body.MemMiB = new(384)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if w.isCopy(t, v) {
		t.Fatal("it did not boot: the test shows nothing")
	}
	if v.VMM != "qemu" {
		w.delete(t, v.ID)
		return // it keeps what it has
	}
	w.requireReclaimed(t, v)
	w.sleep(t, v)
	w.wake(t, v)
	w.requireReclaimed(t, v)

	forks, err := w.client.ForkVM(t.Context(), v.ID, api.ForkVM{})
	if err != nil {
		t.Fatal(err)
	}
	fork := forks.VMs[0]
	w.fillAndFree(t, fork)
	w.sleep(t, fork)
	w.wake(t, fork)
	w.requireReclaimed(t, fork)
	for _, one := range []api.VM{v, fork} {
		if log, err := w.log(t, one.ID, client.LogOptions{Source: "vmm"}); err != nil || strings.Contains(log, "qemu") {
			t.Errorf("the VMM of %s says %q, %v", one.ID, log, err)
		}
		w.delete(t, one.ID)
	}
}

// freed is how many MiB a guest fills and frees.
const freed = 200

// fillAndFree returns what the host has of a guest's memory in MiB while the
// guest makes use of it.
func (w *world) fillAndFree(t *testing.T, v api.VM) (used int64) {
	t.Helper()
	w.inside(t, v, "mkdir -p /run/fill && mount -t tmpfs -o size=90% none /run/fill && dd if=/dev/zero of=/run/fill/it bs=1M 2>/dev/null count="+strconv.Itoa(freed))
	used = w.metrics(t, v.ID).Memory.HostResidentBytes >> 20
	w.inside(t, v, "umount /run/fill")
	return used
}

func (w *world) requireReclaimed(t *testing.T, v api.VM) {
	t.Helper()
	used := w.fillAndFree(t, v)
	now := used
	err := sandbox.Poll(readyLimit, func() (bool, error) {
		now = w.metrics(t, v.ID).Memory.HostResidentBytes >> 20
		return used-now > freed/2, nil
	})
	if err != nil {
		t.Errorf("%d MiB were used, and %d are after %d MiB were freed: %v", used, now, freed, err)
	}
	t.Logf("%d MiB were used, %d are", used, now)
}
