package lifecycle_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// story returns "actor type what" of every event of a VM; what is a state, or
// an operation and its outcome, or a condition.
func (w *world) story(t *testing.T, id string) []string {
	t.Helper()
	events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: id, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range events {
		var data struct{ To, Operation, Outcome, Condition, Error string }
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatalf("%s: %v", e.Data, err)
		}
		words := []string{string(e.Actor.Kind), strings.TrimPrefix(string(e.Type), "vm."), data.Condition, data.To, data.Operation, data.Outcome}
		lines = append(lines, strings.Join(strings.Fields(strings.Join(words, " ")), " "))
	}
	return lines
}

func requireStory(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOperationEventsNameTheActor(t *testing.T) {
	w := newWorld(t)
	cause := event.Cause{Actor: event.Actor{Kind: event.Key, ID: "key_a", Name: "me"}, RequestID: "req_1"}
	ctx := event.WithCause(t.Context(), cause)
	v, err := w.Create(ctx, owner, vm.CreateRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []func(context.Context, access.Scope, string) (vm.VM, error){w.Pause, w.Resume, w.Stop, w.Start, w.Restart} {
		if _, err := op(ctx, access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Stop(ctx, access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pause(ctx, access.Owner(owner), v.ID); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	if err := w.Delete(ctx, access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	requireStory(t, w.story(t, v.ID),
		"key created", "key state_changed running", "key operation create succeeded",
		"key state_changed paused", "key operation pause succeeded",
		"key state_changed running", "key operation resume succeeded",
		"key state_changed stopping", "key state_changed stopped", "key operation stop succeeded",
		"key state_changed starting", "key state_changed running", "key operation start succeeded",
		"key state_changed stopping", "key state_changed stopped", "key state_changed starting", "key state_changed running", "key operation restart succeeded",
		"key state_changed stopping", "key state_changed stopped", "key operation stop succeeded",
		"key operation pause failed",
		"key deleted", "key operation delete succeeded")
	events, _, err := w.store.Events(ctx, event.Filter{Scope: access.Everyone, VMID: v.ID, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Cause != cause || e.VMName != "web" {
			t.Errorf("%s was caused by %+v on %q", e.Type, e.Cause, e.VMName)
		}
	}
	failed := events[len(events)-3]
	if !strings.Contains(failed.Message, "it is stopped") || !strings.Contains(string(failed.Data), `"code":"vm_not_running"`) {
		t.Errorf("%s %s", failed.Message, failed.Data)
	}
}

// What is wrong inside goes to the log, not to those who read events.
func TestFailureEventsOmitTheCause(t *testing.T) {
	w := newWorld(t)
	w.calls.FailNext("Open")
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); err == nil {
		t.Fatal("the create did not fail")
	}
	all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{})
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	requireStory(t, w.story(t, all[0].ID), "hatchd created", "hatchd state_changed error", "hatchd operation create failed")
	events, _, _ := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, Limit: 10})
	for _, e := range events {
		if text := e.Message + string(e.Data); strings.Contains(text, "injected") {
			t.Errorf("an event tells of insides: %s", text)
		}
	}
}

func TestGuestActionsNameTheGuest(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(w *world, id string)
		to   vm.State
		by   string
	}{
		{"power off", func(w *world, id string) { w.driver.PowerOff(id) }, vm.Stopped, "guest state_changed stopped"},
		{"panic", func(w *world, id string) { w.driver.Panic(id) }, vm.Failed, "guest state_changed error"},
		{"crash of the VMM", func(w *world, id string) { w.driver.Crash(id) }, vm.Failed, "hatchd state_changed error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			c.end(w, v.ID)
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			defer cancel()
			if _, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{State: c.to}); err != nil {
				t.Fatal(err)
			}
			story := w.story(t, v.ID)
			if last := story[len(story)-1]; last != c.by {
				t.Errorf("the last event is %q, want %q", last, c.by)
			}
		})
	}
}

func TestReportsNameTheGuest(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	g := w.guests.Session(v.ID)
	report := &vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "done"}}
	g.Observe(report)
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if _, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{Ready: true}); err != nil {
		t.Fatal(err)
	}
	requireStory(t, w.story(t, v.ID),
		"hatchd created", "hatchd state_changed running", "hatchd operation create succeeded",
		"guest condition_changed network_ready true", "guest condition_changed agent_ready true", "guest condition_changed cloud_init_done true")
}

// untilTold returns once the story has a line so many times.
func (w *world) untilTold(t *testing.T, id, line string, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	for {
		added := w.store.EventAdded()
		story := strings.Join(w.story(t, id), "\n")
		if strings.Count(story, line) >= times {
			return
		}
		select {
		case <-added:
		case <-ctx.Done():
			t.Fatalf("%q is not told %d times:\n%s", line, times, story)
		}
	}
}

// TestRebootHasAnEvent lets the agent come back as it was, and then from another
// boot.
func TestRebootHasAnEvent(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	g := w.guests.Session(v.ID)
	for i, boot := range []string{"boot1", "boot1", "boot2"} {
		g.Observe(&vm.GuestReport{BootID: boot})
		w.untilTold(t, v.ID, "guest condition_changed agent_ready true", i+1)
		if i < 2 {
			g.Observe(nil)
			w.untilTold(t, v.ID, "hatchd condition_changed agent_ready false", i+1)
		}
	}
	w.untilTold(t, v.ID, "guest rebooted", 1)
	if story := strings.Join(w.story(t, v.ID), "\n"); strings.Count(story, "guest rebooted") != 1 {
		t.Errorf("told twice:\n%s", story)
	}
}

// TestAdoptionAddsNoEvents restarts the daemon under a VM that runs on.
func TestAdoptionAddsNoEvents(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	lost := mustCreate(t, w, vm.CreateRequest{})
	before := w.story(t, v.ID)
	w.shut(t)
	w.driver.Crash(lost.ID)
	w.serve(t)
	requireStory(t, w.story(t, v.ID), before...)
	story := w.story(t, lost.ID)
	if last := story[len(story)-1]; last != "hatchd state_changed stopped" {
		t.Errorf("of a machine that ended meanwhile is told %q", last)
	}
}

// TestCloneNamesItsSource reads the first event of each kind of clone.
func TestCloneNamesItsSource(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	named, unnamed := w.take(t, v.ID, "same", vm.SnapshotRequest{Name: "golden"}), w.take(t, v.ID, "same", vm.SnapshotRequest{})
	from := func(snap string) vm.VM {
		made, err := w.CreateFrom(t.Context(), owner, snap, vm.CloneRequest{Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		return made.VMs[0]
	}
	forks, err := w.Fork(t.Context(), owner, v.ID, vm.CloneRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		from(named.ID).ID:   "created from snapshot " + named.ID + " (golden) of " + v.ID + " with ",
		from(unnamed.ID).ID: "created from snapshot " + unnamed.ID + " of " + v.ID + " with ",
		forks.VMs[0].ID:     "created from " + v.ID + " as a fork with ",
		v.ID:                "created from " + v.ImageID + " with ",
	} {
		page, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Owner(owner), VMID: id, Types: []event.Pattern{"vm.created"}, Limit: 1})
		if err != nil || len(page) != 1 || !strings.HasPrefix(page[0].Message, want) {
			t.Errorf("%s: %+v, %v, want %q", id, page, err, want)
		}
	}
}
