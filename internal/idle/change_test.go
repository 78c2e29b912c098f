package idle_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// A VM that has an expiry only is never looked at, also when it could not be read.
func TestAnExpiryOutlivesLostReads(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := vm.VM{ID: "vm_a", State: vm.Running}
		v.Expiry = machine.Expiry{At: time.Now().Add(time.Hour), Action: machine.ActionStop}
		w.set(v)
		synctest.Wait() // the list was read
		w.lose(5)
		after(time.Hour + 49*time.Second)
		if len(w.did().expired) != 0 || w.did().tries != 0 {
			t.Errorf("too early: %v, and %d attempts to take it down", w.did().expired, w.did().tries)
		}
		after(time.Second)
		if len(w.did().expired) != 1 || w.did().tries != 0 {
			t.Errorf("done: %v, and %d attempts to take it down", w.did().expired, w.did().tries)
		}
	})
}

// A policy that is given up while its VM is read takes no VM down.
func TestAPolicyThatChangesAtTheLastMoment(t *testing.T) {
	for name, change := range map[string]func(p *machine.IdlePolicy){
		"given up":    func(p *machine.IdlePolicy) { p.Action = machine.ActionNone },
		"longer":      func(p *machine.IdlePolicy) { p.Timeout *= 100 },
		"less strict": func(p *machine.IdlePolicy) { p.Timeout, p.CPUPercent = p.Timeout*100, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				v := w.start("vm_a")
				after(timeout - time.Second)
				change(&v.Idle)
				w.next(&w.reading, func() { w.set(v) })
				after(timeout)
				if got := w.state("vm_a"); got != vm.Running || w.did().tries != 0 {
					t.Errorf("it is %s, tried %d times", got, w.did().tries)
				}
			})
		})
	}
}

// A change that is told after a later one changes nothing.
func TestChangesOutOfOrder(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		synctest.Wait() // the list was read
		begin := time.Now()
		old := vm.VM{ID: "vm_a", State: vm.Running, Revision: 1}
		old.Idle = machine.IdlePolicy{Timeout: timeout, Action: machine.ActionSleep}
		old.Expiry = machine.Expiry{At: begin.Add(time.Hour), Action: machine.ActionStop}
		now := old
		now.Revision, now.Idle, now.Expiry.At = 2, machine.IdlePolicy{}, begin.Add(2*time.Hour)
		w.set(now)
		w.Changed(old)
		after(2*time.Hour - time.Second)
		if got := w.state("vm_a"); got != vm.Running || w.did().tries != 0 || len(w.did().expired) != 0 {
			t.Errorf("it is %s, tried %d times, ended %v", got, w.did().tries, w.did().expired)
		}
		after(time.Second)
		if len(w.did().expired) != 1 {
			t.Errorf("ended %v", w.did().expired)
		}
	})
}

// An expiry that was changed without word of it ends the VM at its new time.
func TestAnExpiryThatWasMissed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := vm.VM{ID: "vm_a", State: vm.Running}
		v.Expiry = machine.Expiry{At: time.Now().Add(time.Hour), Action: machine.ActionStop}
		synctest.Wait() // the list was read
		w.set(v)
		w.mu.Lock()
		v.Expiry.At = v.Expiry.At.Add(time.Hour)
		w.vms["vm_a"] = v
		w.mu.Unlock()
		after(2*time.Hour - time.Second)
		if len(w.did().expired) != 0 {
			t.Errorf("too early: %v", w.did().expired)
		}
		after(time.Second)
		if len(w.did().expired) != 1 {
			t.Errorf("ended %v", w.did().expired)
		}
	})
}

// A VM with an operation is not waited for, and tried again some time after the attempt.
func TestABusyVM(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.start("vm_a")
		w.fail(errs.New(errs.TimedOut, "vm_busy", "busy"))
		w.next(&w.now, func() { after(time.Minute) })
		after(2 * timeout)
		synctest.Wait()
		if wait := w.did().began[1].Sub(w.did().began[0]); wait != time.Minute+10*time.Second || w.did().waited {
			t.Errorf("tried again after %s; waited for an operation: %v", wait, w.did().waited)
		}
	})
}

// A VM that could not be taken down says so only as long as it is so.
func TestWhatKeepsAVMAwakeIsTakenBack(t *testing.T) {
	cannot := errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved")
	for name, change := range map[string]func(w *world, v vm.VM){
		"the guest works": func(w *world, _ vm.VM) { w.work("vm_a", vm.Sample{NetworkBytes: 1 << 30}) },
		"no policy":       func(w *world, v vm.VM) { v.Idle.Action = machine.ActionNone; w.set(v) },
		"another policy":  func(w *world, v vm.VM) { v.Idle.Timeout *= 2; w.set(v) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				v := w.start("vm_a")
				w.fail(cannot)
				after(timeout)
				synctest.Wait()
				change(w, v)
				after(time.Minute)
				if len(w.did().told) != 2 || w.did().told[1] != "" {
					t.Errorf("it says %q", w.did().told)
				}
			})
		})
	}
}

// Attempts become rarer only while the VM is idle all the time.
func TestTheBackoffBeginsAnew(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		w.fail(errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved"))
		after(timeout + 3*time.Minute)
		synctest.Wait()
		w.work("vm_a", vm.Sample{NetworkBytes: 1 << 30})
		after(4 * time.Minute) // the fourth attempt: it works
		after(timeout)
		synctest.Wait()
		if st := w.Status(v); !st.SleepsAt.Equal(time.Now().Add(time.Minute)) {
			t.Errorf("it is tried again in %s", time.Until(st.SleepsAt))
		}
	})
}

// Traffic of long ago does not count, also for a VM that could not be taken down since.
func TestOldTrafficDoesNotCount(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := w.start("vm_a")
		w.fail(errs.New(errs.Unsupported, "sleep_unsupported", "cannot be saved"))
		synctest.Wait()
		w.work("vm_a", vm.Sample{NetworkBytes: 600 << 10})
		after(3 * timeout)
		w.work("vm_a", vm.Sample{NetworkBytes: 1200 << 10})
		after(3 * timeout)
		if last := w.Status(v).Last; last.Cause != "start" {
			t.Errorf("its last activity is %s, %s ago", last, time.Since(last.At))
		}
	})
}

// Nothing is kept of a VM that is deleted while it is looked at.
func TestNothingIsLeftOfADeletedVM(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.start("vm_a")
		w.work("vm_a", vm.Sample{Guest: vm.GuestActivity{Commands: 1}})
		after(timeout - time.Second)
		w.next(&w.sampling, func() {
			w.mu.Lock()
			delete(w.vms, "vm_a")
			w.mu.Unlock()
			w.Gone("vm_a")
			w.uses.Forget("vm_a")
		})
		after(time.Minute)
		synctest.Wait()
		if last, _ := w.uses.Last("vm_a"); last != (vm.Activity{}) {
			t.Errorf("it is remembered: %s", last)
		}
	})
}
