package lifecycle_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// reaching are the ways into a guest.
var reaching = map[string]func(ctx context.Context, w *world, by, id string) error{
	"guest": func(ctx context.Context, w *world, by, id string) error {
		_, err := w.Guest(ctx, access.Owner(by), id)
		return err
	},
	"console": func(ctx context.Context, w *world, by, id string) error {
		console, err := w.Console(ctx, access.Owner(by), id, true) // several can read at a time
		if err == nil {
			return console.Close()
		}
		return err
	},
	"wait": func(ctx context.Context, w *world, by, id string) error {
		_, err := w.Wait(ctx, access.Owner(by), id, vm.WaitFor{Port: 22})
		return err
	},
}

// sleeper makes a world whose guests answer on every port, and a VM in it that
// sleeps.
func sleeper(t *testing.T) (*world, vm.VM) {
	t.Helper()
	w, v := probed(t, &insides{network: server(t, nil)}, true)
	slept, err := w.Sleep(t.Context(), access.Owner(owner), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	return w, slept
}

// wakings counts the wakes that the log tells of.
func (w *world) wakings(t *testing.T, id string) int {
	t.Helper()
	return strings.Count(strings.Join(w.story(t, id), "\n"), "operation wake")
}

func TestAccessWakesASleepingVM(t *testing.T) {
	for name, reach := range reaching {
		t.Run(name, func(t *testing.T) {
			w, v := sleeper(t)
			if err := reach(t.Context(), w, "acc_other", v.ID); !errs.Is(err, errs.NotFound) {
				t.Errorf("another owner's VM: %v", err)
			}
			requireAsleep(t, w, v)
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					if err := reach(t.Context(), w, owner, v.ID); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if told := w.wakings(t, v.ID); w.calls.Count("Wake") != 1 || told != 1 {
				t.Errorf("the driver woke it %d times, and the log tells of %d", w.calls.Count("Wake"), told)
			}
			requireAwake(t, w, v)
		})
	}
}

func TestReadsDoNotWakeASleepingVM(t *testing.T) {
	w, v := sleeper(t)
	awaitDurable(t, w, v.ID)
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := w.AwakeGuest(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_not_running") {
		t.Errorf("looking inside: %v", err)
	}
	if _, err := w.Metrics(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Errorf("metrics: %v", err)
	}
	if err := w.Log(t.Context(), access.Owner(owner), v.ID, vm.LogQuery{Tail: -1, Follow: false}, io.Discard); err != nil {
		t.Errorf("its console log: %v", err)
	}
	if err := w.VMMLog(t.Context(), access.Owner(owner), v.ID, -1, false, io.Discard); err != nil {
		t.Errorf("its VMM's log: %v", err)
	}
	if _, err := w.Wait(t.Context(), access.Owner(owner), v.ID, vm.WaitFor{State: vm.Snapshotted}); err != nil {
		t.Errorf("a wait for a state: %v", err)
	}
	if _, err := w.Wait(ended, access.Owner(owner), v.ID, vm.WaitFor{State: vm.Running}); !errs.HasCode(err, "wait_timeout") {
		t.Errorf("a wait for a wake by another caller: %v", err)
	}
	requireAsleep(t, w, v)
	if w.calls.Count("Wake") != 0 {
		t.Errorf("it was woken %d times", w.calls.Count("Wake"))
	}
}

// A caller that reaches into a VM that cannot be woken is told why, at once, and
// the VM is left alone for a while.
func TestAccessToAVMThatCannotWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock goes on when all are idle
		w := newWorld(t)
		v := asleep(t, w)
		for name, reach := range reaching {
			w.calls.FailNext("Wake")
			if err := reach(t.Context(), w, owner, v.ID); !errs.HasCode(err, "wake_failed") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if told := w.wakings(t, v.ID); w.calls.Count("Wake") != 1 || told != 1 {
			t.Errorf("tried %d times, and the log tells of %d", w.calls.Count("Wake"), told)
		}
		w.calls.Withdraw("Wake") // nothing is wrong with it any more
		<-time.After(time.Minute)
		if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); err != nil || w.calls.Count("Wake") != 2 {
			t.Errorf("later: %v, tried %d times", err, w.calls.Count("Wake"))
		}
	})
}

// requireTold checks which events of wakes that are given up the log has.
func requireTold(t *testing.T, w *world, id string, want ...event.Type) {
	t.Helper()
	page, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: id, Limit: event.MaxPage})
	var told []event.Type
	for _, e := range page {
		if e.Type == event.VMWakeSuspended || e.Type == event.VMWakeResumed {
			told = append(told, e.Type)
		}
	}
	if err != nil || !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v, %v", told, want, err)
	}
}

// A VM that fails to wake again and again is left asleep, says what to do, and can be
// woken on request.
func TestAVMThatDoesNotWakeIsNotTriedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		v := asleep(t, w)
		w.calls.Fail("Wake", 1, errs.New(errs.Exhausted, "memory_exhausted", "full")) // is not the VM's fault
		for range 1 + 3 {
			if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); err == nil || errs.HasCode(err, "wake_suspended") {
				t.Fatalf("got %v", err)
			}
			w.calls.FailNext("Wake")
			<-time.After(time.Hour)
		}
		for range 3 {
			if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "wake_suspended") {
				t.Errorf("got %v", err)
			}
			<-time.After(time.Hour)
		}
		requireTold(t, w, v.ID, event.VMWakeSuspended)
		if now := get(t, w, v.ID); w.calls.Count("Wake") != 4 || !strings.Contains(now.StateReason, "not tried again") || now.Sleep == nil {
			t.Errorf("tried %d times; it is %s (%s)", w.calls.Count("Wake"), now.State, now.StateReason)
		}
		w.calls.Withdraw("Wake")
		if _, err := w.Wake(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Errorf("on request: %v", err)
		}
		requireTold(t, w, v.ID, event.VMWakeSuspended, event.VMWakeResumed)
		if _, err := w.Sleep(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

// A caller who leaves aborts no wake.
func TestWakeIsBoundByTheCallersTimeout(t *testing.T) {
	for name, code := range map[string]string{"guest": "still_working", "console": "still_working", "wait": "wait_timeout"} {
		t.Run(name, func(t *testing.T) {
			w, v := sleeper(t)
			awaitDurable(t, w, v.ID) // nothing but the wake writes its row from now on
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			goOn := make(chan struct{})
			var left sync.Once
			w.calls.Before("UpdateVM", func() {
				left.Do(leave)
				<-goOn
			})
			if err := reaching[name](ctx, w, owner, v.ID); !errs.HasCode(err, code) {
				t.Errorf("got %v", err)
			}
			w.calls.Before("UpdateVM", nil)
			close(goOn)
			if err := reaching[name](t.Context(), w, owner, v.ID); err != nil || w.calls.Count("Wake") != 1 {
				t.Errorf("later: %v, %d wakes", err, w.calls.Count("Wake"))
			}
			requireAwake(t, w, v)
		})
	}
}
