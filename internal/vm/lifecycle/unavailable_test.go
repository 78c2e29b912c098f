package lifecycle_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// away is the error of a database that does not answer.
func away() error {
	return errs.New(errs.Unavailable, errs.DatabaseUnavailable, "injected: the database does not answer")
}

// A database that is away for a moment leaves no VM in a state that it is not in.
func TestOutcomesAreStoredOnceTheDatabaseAnswers(t *testing.T) {
	const failures = 3
	stopped := func(t *testing.T, w *world) string {
		v := mustCreate(t, w, vm.CreateRequest{})
		if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		return v.ID
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, w *world) string
		failing []string
		do      func(t *testing.T, w *world, id string) (vm.VM, error)
		want    vm.State
	}{
		"create": {
			func(*testing.T, *world) string { return "" },
			[]string{"UpdateVM"},
			func(t *testing.T, w *world, _ string) (vm.VM, error) {
				return w.Create(t.Context(), owner, vm.CreateRequest{})
			}, vm.Running,
		},
		"start": {
			stopped,
			[]string{"LeaseVM", "UpdateVM"},
			func(t *testing.T, w *world, id string) (vm.VM, error) {
				return w.Start(t.Context(), access.Owner(owner), id)
			}, vm.Running,
		},
		"stop": {
			func(t *testing.T, w *world) string { return mustCreate(t, w, vm.CreateRequest{}).ID },
			[]string{"UpdateVM"},
			func(t *testing.T, w *world, id string) (vm.VM, error) {
				return w.Stop(t.Context(), access.Owner(owner), id)
			}, vm.Stopped,
		},
		"wake": {
			func(t *testing.T, w *world) string { return asleep(t, w).ID },
			[]string{"LeaseVM", "UpdateVM"},
			func(t *testing.T, w *world, id string) (vm.VM, error) {
				return w.Wake(t.Context(), access.Owner(owner), id)
			}, vm.Running,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := c.prepare(t, w)
			for _, call := range c.failing {
				w.calls.Fail(call, failures, away())
			}
			v, err := c.do(t, w, id)
			if err != nil || v.State != c.want || get(t, w, v.ID).State != c.want {
				t.Errorf("it is %s, %v; want %s", v.State, err, c.want)
			}
			for _, call := range c.failing {
				if w.calls.Pending(call) {
					t.Errorf("%s did not fail", call)
				}
			}
		})
	}
}

// A start that fails while the database is away is stored, too.
func TestAFailureIsStoredOnceTheDatabaseAnswers(t *testing.T) {
	w := newWorld(t)
	w.calls.Fail("Start", 1, errors.New("injected: no VMM"))
	w.calls.Fail("UpdateVM", 3, away())
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); err == nil || errs.HasCode(err, errs.DatabaseUnavailable) {
		t.Errorf("got %v", err)
	}
	all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{})
	if err != nil || len(all) != 1 || all[0].State != vm.Failed {
		t.Errorf("there are %+v, %v", all, err)
	}
}

// The connection broke when the rows were stored: the caller is told that the create has
// failed, so nothing of it stays.
func TestACreateOfUnknownOutcomeLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.calls.Fail("VMCreated", 1, away())
	w.calls.Fail("DeleteVM", 3, away())
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); !errs.HasCode(err, errs.DatabaseUnavailable) {
		t.Errorf("got %v", err)
	}
	w.awaitNoVM(t)
}

// awaitNoVM returns once the rows of failed creates are deleted.
func (w *world) awaitNoVM(t *testing.T) {
	t.Helper()
	for all := []vm.VM{{}}; len(all) > 0; {
		changed := w.AnyChanged()
		var err error
		if all, _, err = w.store.VMs(t.Context(), access.Everyone, vm.Filter{}); err != nil {
			t.Fatal(err)
		}
		if len(all) > 0 {
			<-changed
		}
	}
}

// How an operation has ended is appended once the database answers, and the client does
// not wait for it.
func TestTheOutcomeOfAnOperationIsLoggedOnceTheDatabaseAnswers(t *testing.T) {
	w := newWorld(t)
	id := mustCreate(t, w, vm.CreateRequest{}).ID
	w.calls.Fail("AppendEvents", 3, away())
	if _, err := w.Stop(t.Context(), access.Owner(owner), id); err != nil {
		t.Fatal(err)
	}
	for {
		added := w.store.EventAdded()
		events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: id, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(events, func(e event.Event) bool {
			return e.Type == event.VMOperation && strings.HasPrefix(e.Message, "stop took")
		}) {
			return
		}
		select {
		case <-added:
		case <-time.After(time.Minute):
			t.Fatal("there is no event about the stop")
		}
	}
}
