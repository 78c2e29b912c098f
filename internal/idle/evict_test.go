package idle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
)

// The VM that was idle for longest makes room, and none that works.
func TestEvict(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for _, id := range []string{"vm_used", "vm_busy", "vm_oldest", "vm_newer"} {
			w.start(id)
			after(time.Minute)
		}
		defer w.uses.Hold(t.Context(), "vm_used", reach.Exec)()
		w.work("vm_busy", vm.Sample{Guest: vm.GuestActivity{Commands: 1}})
		for _, want := range []string{"vm_oldest", "vm_newer"} {
			evicted, err := w.Evict(t.Context(), access.Everyone)
			if !evicted || err != nil || w.state(want) != vm.Snapshotted || w.vms[want].Sleep.Rule != vm.RuleMemory {
				t.Errorf("%s is %s: %v, %v", want, w.state(want), evicted, err)
			}
		}
		if evicted, err := w.Evict(t.Context(), access.Everyone); evicted || err != nil {
			t.Errorf("one in use: %v, %v", evicted, err)
		}
	})
}

// For a user only its own VMs sleep; the others may be tried again at once.
func TestEvictOfOneUser(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		v.OwnerID = "acc_a"
		w.set(v)
		after(time.Minute)
		if evicted, err := w.Evict(t.Context(), access.Owner("acc_other")); evicted || err != nil {
			t.Errorf("one of another user: %v, %v", evicted, err)
		}
		if evicted, err := w.Evict(t.Context(), access.Owner(v.OwnerID)); !evicted || err != nil {
			t.Errorf("one of the user: %v, %v", evicted, err)
		}
	})
}

// A guest that computes is not idle, and its VM says what keeps it awake.
func TestNoEvictionOfAGuestThatWorks(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		after(time.Minute)
		w.work("vm_a", vm.Sample{CPUTime: time.Minute})
		if evicted, err := w.Evict(t.Context(), access.Everyone); evicted || err != nil {
			t.Errorf("it is %s: %v, %v", w.state("vm_a"), evicted, err)
		}
		if last := w.Status(v).Last; last.Cause != "cpu" {
			t.Errorf("its last activity is %+v", last)
		}
	})
}

func TestNoEvictionAfterThePolicyHasChanged(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		after(time.Minute)
		v.Idle.Action = machine.ActionNone
		w.next(&w.reading, func() { w.set(v) })
		if evicted, err := w.Evict(t.Context(), access.Everyone); evicted || err != nil {
			t.Errorf("it is %s: %v, %v", w.state("vm_a"), evicted, err)
		}
	})
}

// Any number of VMs that work, or cannot sleep, leave the others to be found.
func TestEvictGoesOnToTheNextVM(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for i := range 2 * maxEvictions {
			id := fmt.Sprintf("vm_%02d", i)
			w.start(id)
			w.work(id, vm.Sample{Guest: vm.GuestActivity{Commands: 1}})
		}
		after(time.Second)
		for _, id := range []string{"vm_first", "vm_second"} {
			w.start(id)
			after(20 * time.Second)
		}
		if evicted, err := w.Evict(t.Context(), access.Everyone); !evicted || err != nil || w.state("vm_first") != vm.Snapshotted {
			t.Errorf("after VMs that work: %v, %v", evicted, err)
		}
		for i := range maxEvictions {
			w.work(fmt.Sprintf("vm_%02d", i), vm.Sample{})
		}
		after(time.Minute)
		w.start("vm_third")
		after(20 * time.Second)
		w.fail(errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved"))
		if evicted, err := w.Evict(t.Context(), access.Everyone); evicted || err != nil || w.did().tries != 1+maxEvictions {
			t.Errorf("tried %d times: %v, %v", w.did().tries, evicted, err)
		}
		w.fail(nil)
		for _, want := range []string{"vm_second", "vm_third"} {
			if evicted, err := w.Evict(t.Context(), access.Everyone); !evicted || err != nil {
				t.Errorf("after VMs that cannot sleep, %s: %v, %v", want, evicted, err)
			}
		}
	})
}

// maxEvictions is how many VMs are tried at a time.
const maxEvictions = 8

// A VM that could not fall asleep when it was idle is not tried for another one.
func TestNoEvictionOfAVMThatCannotSleep(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.start("vm_a")
		w.fail(errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved"))
		after(timeout + time.Second)
		if evicted, err := w.Evict(t.Context(), access.Everyone); evicted || err != nil || w.did().tries != 1 {
			t.Errorf("tried %d times: %v, %v", w.did().tries, evicted, err)
		}
	})
}
