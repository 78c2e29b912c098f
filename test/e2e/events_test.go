//go:build system

package e2e

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// follower collects a VM's events.
type follower struct {
	opts   client.EventOptions // its cursor advances
	events []api.Event
}

// until follows until an event matches, and returns it and when it came.
func (f *follower) until(t *testing.T, w *world, limit time.Duration, what string, matches func(api.Event) bool) (api.Event, time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for e, err := range w.client.FollowEvents(ctx, &f.opts) {
		if err != nil {
			t.Fatalf("no event says that %s: %v; there are:\n%s", what, err, f.list())
		}
		f.events = append(f.events, e)
		if matches(e) {
			return e, time.Now()
		}
	}
	t.Fatal("the stream has ended without an error")
	return api.Event{}, time.Time{}
}

func (f *follower) list() string {
	var b strings.Builder
	for _, e := range f.events {
		b.WriteString(e.Type + " by " + e.Actor.Kind + ": " + e.Message + "\n")
	}
	return b.String()
}

func becomes(state string) func(api.Event) bool {
	return func(e api.Event) bool { return e.Type == "vm.state_changed" && e.Data["to"] == state }
}

// testEvents follows a guest from its creation until it powers itself off, over a
// kill of hatchd.
func testEvents(t *testing.T, w *world) {
	body := minimal()
	body.Name = "observed"
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	f := &follower{opts: client.EventOptions{VM: v.ID}}
	f.until(t, w, normalReply, "the agent answers", func(e api.Event) bool {
		return e.Type == "vm.condition_changed" && e.Data["condition"] == api.ConditionAgentReady && e.Data["to"] == api.StatusTrue && e.Actor.Kind == api.ActorGuest
	})
	if made := f.events[0]; made.Type != "vm.created" || made.Actor.Kind != api.ActorKey || made.Actor.Name != "admin" || made.RequestID == "" || made.VMName != "observed" {
		t.Errorf("the first event is %+v", made)
	}
	if !slices.ContainsFunc(f.events, becomes(api.StateRunning)) {
		t.Errorf("no event says that it runs:\n%s", f.list())
	}

	w.typeInto(t, v.ID, "reboot\n", "reboot")
	again, _ := f.until(t, w, readyLimit, "it has rebooted", func(e api.Event) bool { return e.Type == "vm.rebooted" })
	if again.Actor.Kind != api.ActorGuest {
		t.Errorf("the actor of its reboot is %s", again.Actor.Kind)
	}

	p := vmm(t, v)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	w.await(t, v.ID, "agent", normalReply)
	w.typeInto(t, v.ID, "poweroff\n", "poweroff")
	gone := make(chan time.Time, 1)
	go func() { p.awaitExit(t, stopLimit); gone <- time.Now() }()
	off, reported := f.until(t, w, stopLimit, "it has stopped", becomes(api.StateStopped))
	late := reported.Sub(<-gone)
	t.Logf("from the end of the VMM until the event: %.0f ms", float64(late.Microseconds())/1000)
	if off.Actor.Kind != api.ActorGuest || !strings.Contains(off.Message, "powered itself off") || late > noticeLimit {
		t.Errorf("reported after %s, by %s: %s", late, off.Actor.Kind, off.Message)
	}

	// The two streams brought every event, each once.
	var all []api.Event
	for e, err := range w.client.ListEvents(t.Context(), client.EventOptions{VM: v.ID}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq <= off.Seq {
			all = append(all, e)
		}
	}
	same := slices.EqualFunc(all, f.events, func(a, b api.Event) bool { return a.Seq == b.Seq && a.ID == b.ID })
	if !same {
		t.Errorf("followed %d events:\n%s\nthe log has %d", len(f.events), f.list(), len(all))
	}
	if got := w.hatch(t, "why", "observed"); !strings.Contains(got, "the guest") || !strings.Contains(got, "observed is stopped: the guest powered itself off. To start it: hatch start observed") {
		t.Errorf("hatch why prints:\n%s", got)
	}
}
