package lifecycle_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
)

// idleNow puts a VM to sleep by its idle policy if it is not used from now on.
func idleNow(w *world, ctx context.Context, id string) (bool, error) {
	return w.TakeDown(ctx, id, vm.TakeDown{
		Action: machine.ActionSleep, Rule: vm.RuleIdle, UnusedSince: time.Now(),
		Still:  func(v vm.VM) bool { return v.State == vm.Running },
		Reason: func(last vm.Activity) string { return "idle; the last activity was " + last.String() },
	})
}

// sleeps are the ways in which a VM falls asleep.
var sleeps = map[string]func(w *world, ctx context.Context, id string) error{
	"by its policy": func(w *world, ctx context.Context, id string) error {
		_, err := idleNow(w, ctx, id)
		return err
	},
	"on request": func(w *world, ctx context.Context, id string) error {
		_, err := w.Sleep(ctx, access.Owner(owner), id)
		return err
	},
}

// arriving are all ways to a guest.
func arriving() map[string]func(ctx context.Context, w *world, by, id string) error {
	all := map[string]func(ctx context.Context, w *world, by, id string) error{
		"a port": func(ctx context.Context, w *world, _, id string) error {
			defer w.Reach().Hold(ctx, id, reach.Port)()
			return w.WakeOnDemand(ctx, id)
		},
	}
	maps.Copy(all, reaching)
	return all
}

// 100 callers arrive while a VM falls asleep: all are served, by one wake.
func TestNoArrivalIsLostDuringASleep(t *testing.T) {
	for how, sleep := range sleeps {
		for by, arrive := range arriving() {
			t.Run(how+", "+by, func(t *testing.T) {
				w, v := probed(t, &insides{network: server(t, nil)}, true)
				const callers = 100
				var all sync.WaitGroup
				var once sync.Once
				w.calls.Before("Save", func() { // its CPUs stand still now
					once.Do(func() {
						for range callers {
							all.Go(func() {
								if err := arrive(t.Context(), w, owner, v.ID); err != nil {
									t.Error(err)
								}
							})
						}
						awaitUses(t, w, v.ID, callers)
					})
				})
				if err := sleep(w, t.Context(), v.ID); err != nil {
					t.Fatal(err)
				}
				all.Wait()
				if saves, wakes := w.calls.Count("Save"), w.calls.Count("Wake"); saves != 1 || wakes != 1 {
					t.Errorf("it was saved %d times and woken %d times", saves, wakes)
				}
				requireAwake(t, w, v)
			})
		}
	}
}

// awaitUses waits until so many uses of a VM are counted.
func awaitUses(t *testing.T, w *world, id string, want int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); len(w.Reach().Uses(id)) < want; <-tick.C {
		if time.Now().After(deadline) {
			t.Errorf("%d uses, want %d", len(w.Reach().Uses(id)), want)
			return
		}
	}
}

// Callers who arrive while a sleep fails are served by the guest that runs on.
func TestNoArrivalIsLostWhenASleepFails(t *testing.T) {
	w, v := probed(t, &insides{network: server(t, nil)}, true)
	w.calls.FailNext("Save")
	var all sync.WaitGroup
	w.calls.Before("Save", func() {
		for _, arrive := range arriving() {
			all.Go(func() {
				if err := arrive(t.Context(), w, owner, v.ID); err != nil {
					t.Error(err)
				}
			})
		}
		awaitUses(t, w, v.ID, len(arriving()))
	})
	if done, err := idleNow(w, t.Context(), v.ID); done || err == nil {
		t.Errorf("it fell asleep: %v, %v", done, err)
	}
	all.Wait()
	requireAwake(t, w, v)
	if w.calls.Count("Wake") != 0 {
		t.Error("it was woken")
	}
}

// A VM in use does not fall asleep by its policy, nor does one that was used since.
func TestNoSleepOfAVMInUse(t *testing.T) {
	w, v := probed(t, &insides{network: server(t, nil)}, true)
	_, release, err := w.Reach().Open(reach.WithPeer(t.Context(), "a client"), access.Owner(owner), v.ID, reach.Exec, reach.Wake)
	if err != nil {
		t.Fatal(err)
	}
	if done, err := idleNow(w, t.Context(), v.ID); done || err != nil {
		t.Errorf("in use: %v, %v", done, err)
	}
	before := time.Now()
	release()
	d := vm.TakeDown{
		Action: machine.ActionSleep, Rule: vm.RuleIdle, UnusedSince: before,
		Still: func(vm.VM) bool { return true }, Reason: vm.Activity.String,
	}
	if done, err := w.TakeDown(t.Context(), v.ID, d); done || err != nil {
		t.Errorf("used since: %v, %v", done, err)
	}
	d.UnusedSince, d.Still = time.Now(), func(vm.VM) bool { return false }
	if done, err := w.TakeDown(t.Context(), v.ID, d); done || err != nil {
		t.Errorf("without a reason: %v, %v", done, err)
	}
	requireAwake(t, w, v)
	d.Still = func(vm.VM) bool { return true }
	if done, err := w.TakeDown(t.Context(), v.ID, d); !done || err != nil {
		t.Errorf("idle: %v, %v", done, err)
	}
	slept := requireAsleep(t, w, v)
	if slept.Sleep.Rule != vm.RuleIdle || slept.Sleep.Last.Peer != "a client" || slept.StateReason != "exec by a client" {
		t.Errorf("it tells %+v, %q", slept.Sleep, slept.StateReason)
	}
}

// An idle VM whose policy is stop shuts down.
func TestStopByARule(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	done, err := w.TakeDown(t.Context(), v.ID, vm.TakeDown{
		Action: machine.ActionStop, Rule: vm.RuleExpiry,
		Still: func(vm.VM) bool { return true }, Reason: func(vm.Activity) string { return "its time has passed" },
	})
	if v = get(t, w, v.ID); !done || err != nil || v.State != vm.Stopped || v.StateReason[:19] != "its time has passed" {
		t.Errorf("%v, %v: it is %s (%s)", done, err, v.State, v.StateReason)
	}
}
