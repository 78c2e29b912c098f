package lifecycle_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// expiring makes a VM whose time passes in an hour.
func expiring(t *testing.T, w *world, action machine.Action) vm.VM {
	t.Helper()
	return mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{Expiry: &machine.Expiry{TTL: time.Hour, Action: action}}})
}

// expirations counts the events that tell of a VM whose time has passed.
func (w *world) expirations(t *testing.T, id string) (n int) {
	t.Helper()
	for _, line := range w.story(t, id) {
		if slices.Contains(strings.Fields(line), "expired") {
			n++
		}
	}
	return n
}

// An expiry ends a VM in each state, and tells of it once.
func TestAnExpiryInEachState(t *testing.T) {
	all := access.Owner(owner)
	states := map[string]func(w *world, id string) error{
		"running": func(*world, string) error { return nil },
		"paused": func(w *world, id string) error {
			_, err := w.Pause(t.Context(), all, id)
			return err
		},
		"asleep": func(w *world, id string) error {
			_, err := w.Sleep(t.Context(), all, id)
			return err
		},
		"stopped": func(w *world, id string) error {
			_, err := w.Stop(t.Context(), all, id)
			return err
		},
	}
	const passed = "its time has passed: it expired at "
	for name, want := range map[string]struct {
		state  vm.State
		reason string
	}{
		"running sleep": {vm.Snapshotted, passed},
		"paused sleep":  {vm.Snapshotted, passed},
		"asleep sleep":  {vm.Snapshotted, "asleep on request"},
		"stopped sleep": {vm.Stopped, "stopped on request"},
		"running stop":  {vm.Stopped, passed},
		"paused stop":   {vm.Stopped, passed},
		"asleep stop":   {vm.Stopped, passed},
		"stopped stop":  {vm.Stopped, "stopped on request"},
	} {
		t.Run(name, func(t *testing.T) {
			state, action, _ := strings.Cut(name, " ")
			w := newWorld(t)
			v := expiring(t, w, machine.Action(action))
			if err := states[state](w, v.ID); err != nil {
				t.Fatal(err)
			}
			if err := w.Expire(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			now := get(t, w, v.ID)
			if now.State != want.state || !strings.HasPrefix(now.StateReason, want.reason) || !now.Expiry.At.IsZero() || w.expirations(t, v.ID) != 1 {
				t.Errorf("it is %s (%s), expires at %s, and %d events tell of it", now.State, now.StateReason, now.Expiry.At, w.expirations(t, v.ID))
			}
			if lost := strings.HasSuffix(now.StateReason, "; it slept, and the content of its memory is lost"); lost != (name == "asleep stop") {
				t.Errorf("its reason is %q", now.StateReason)
			}
		})
	}
}

// An expiry that was changed at the last moment does and tells nothing.
func TestAnExpiryThatHasJustChanged(t *testing.T) {
	for _, action := range []machine.Action{machine.ActionSleep, machine.ActionStop, machine.ActionDelete} {
		w := newWorld(t)
		v := expiring(t, w, action)
		old := v
		old.Expiry.At = v.Expiry.At.Add(-time.Minute)
		if err := w.Expire(t.Context(), old); err != nil {
			t.Errorf("%s: %v", action, err)
		}
		if now := get(t, w, v.ID); now.State != vm.Running || now.Expiry != v.Expiry || w.expirations(t, v.ID) != 0 {
			t.Errorf("%s: it is %s, expires at %s, and %d events tell of it", action, now.State, now.Expiry.At, w.expirations(t, v.ID))
		}
	}
}

func TestADeletionByAnExpiryIsTold(t *testing.T) {
	w := newWorld(t)
	v := expiring(t, w, machine.ActionDelete)
	if err := w.Expire(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(t.Context(), access.Owner(owner), v.ID); !errs.Is(err, errs.NotFound) || w.expirations(t, v.ID) != 1 {
		t.Errorf("%v, and %d events tell of it", err, w.expirations(t, v.ID))
	}
}

// An expiry that could not be carried out stays, and the guest is as it was.
func TestAnExpiryThatFails(t *testing.T) {
	for _, step := range []string{"Save", "UpdateVM"} {
		for _, paused := range []bool{false, true} {
			w := newWorld(t)
			v := expiring(t, w, machine.ActionSleep)
			if paused {
				if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
					t.Fatal(err)
				}
			}
			before := get(t, w, v.ID)
			w.calls.FailNext(step)
			if err := w.Expire(t.Context(), v); err == nil {
				t.Errorf("%s: it succeeded", step)
			}
			now := get(t, w, v.ID)
			if now.State != before.State || now.Expiry != v.Expiry || w.expirations(t, v.ID) != 0 {
				t.Errorf("%s: it is %s, expires at %s, and %d events tell of it", step, now.State, now.Expiry.At, w.expirations(t, v.ID))
			}
			m, _ := w.machine(t, now)
			if is, err := m.Paused(t.Context()); err != nil || is != paused {
				t.Errorf("%s: paused: %v, and was %v, %v", step, is, paused, err)
			}
		}
	}
}
