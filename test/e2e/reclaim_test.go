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

// testReclaim checks that the host gets back memory that a guest has freed: before
// and after a sleep. A clone's memory is mapped from a base; its VMM must not log an
// error when the guest frees it.
func testReclaim(t *testing.T, w *world) {
	body := minimal()
	body.MemMiB = new(384)
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if w.isClone(t, v) {
		t.Fatal("it did not boot: the test shows nothing")
	}
	if v.VMM != "qemu" {
		w.delete(t, v.ID)
		return // Firecracker does not return memory here
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
	for _, v := range []api.VM{v, fork} {
		if log, err := w.log(t, v.ID, client.LogOptions{Source: "vmm"}); err != nil || strings.Contains(log, "qemu") {
			t.Errorf("the VMM of %s has logged %q, %v", v.ID, log, err)
		}
		w.delete(t, v.ID)
	}
}

// freed is how many MiB a guest fills and then frees.
const freed = 200

// fillAndFree has a guest fill memory and free it. It returns the VMM's resident
// memory in between, in MiB.
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
		t.Errorf("%d MiB were used, and %d after %d MiB were freed: %v", used, now, freed, err)
	}
	t.Logf("%d MiB were used, then %d", used, now)
}
