package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

var byTester = event.Cause{Actor: event.Actor{Kind: event.Key, ID: "key_a", Name: "tester"}, RequestID: "req_1"}

// allEvents returns all events that match the filter.
func allEvents(t testing.TB, s *Store, f event.Filter) []event.Event {
	t.Helper()
	f.Limit = 100_000
	events, _, err := s.Events(context.Background(), f)
	noError(t, err)
	return events
}

// summaries returns "type message" of events.
func summaries(events []event.Event) []string {
	lines := make([]string, len(events))
	for i, e := range events {
		lines[i] = string(e.Type) + " " + e.Message
	}
	return lines
}

func TestChangesHaveEvents(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := event.WithCause(t.Context(), byTester)
		v := newVM("vm_a")
		v.State, v.StateReason, v.Conditions = vm.Starting, "", vm.Conditions{}
		anImage(t, s)
		_, err := s.CreateVM(ctx, v, network.Request{}, pools(t), vm.Capacity{})
		noError(t, err)
		update := func(ctx context.Context, change func(*vm.VM)) {
			_, err := s.UpdateVM(ctx, "vm_a", change)
			noError(t, err)
		}
		update(ctx, func(v *vm.VM) { v.State = vm.Running })
		update(ctx, func(v *vm.VM) { v.Provisioned = false }) // adds no event
		update(event.By(ctx, event.Guest), func(v *vm.VM) {
			v.Conditions.Agent = vm.Condition{Status: vm.True, Reason: "Answering"}
		})
		update(event.By(ctx, event.Guest), func(v *vm.VM) {
			v.State, v.StateReason, v.Conditions = vm.Stopped, "off \x00\xff", vm.Conditions{}
		})
		_, err = s.LeaseVM(ctx, "vm_a", pools(t), vm.Capacity{})
		noError(t, err)
		noError(t, s.DeleteVM(ctx, "vm_a"))
		noError(t, s.DeleteVM(ctx, "vm_a")) // already deleted: adds no event

		got := allEvents(t, s, event.Filter{Scope: access.Owner("acc_a"), VMID: "vm_a"})
		equal(t, summaries(got), []string{
			"vm.created created from img_a with 2 CPUs, 512 MiB of memory and a disk of 1024 MiB",
			"vm.state_changed running",
			"vm.condition_changed the agent in the guest answers",
			"vm.state_changed stopped: off \uFFFD\uFFFD",
			"vm.condition_changed agent_ready is unknown",
			"vm.state_changed starting",
			"vm.deleted deleted",
		})
		for i, e := range got {
			if e.Seq != int64(i+1) || e.VMName != "name-a" || e.OwnerID != "acc_a" || !strings.HasPrefix(e.ID, "evt_") || time.Since(e.At) > time.Minute {
				t.Errorf("event %d: %+v", i, e)
			}
		}
		equal(t, got[0].Cause, byTester)
		equal(t, got[3].Cause, event.Cause{Actor: event.Actor{Kind: event.Guest}})
		var data map[string]string
		noError(t, json.Unmarshal(got[3].Data, &data))
		equal(t, data, map[string]string{"from": "running", "to": "stopped", "reason": "off \uFFFD\uFFFD"})
	})
}

// A change whose event cannot be stored does not happen.
func TestNoChangeWithoutItsEvent(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		before := createVM(t, s, newVM("vm_a"))
		_, err := s.writes.Exec("ALTER TABLE events RENAME TO elsewhere")
		noError(t, err)
		if _, err := s.UpdateVM(ctx, "vm_a", func(v *vm.VM) { v.State = vm.Stopped }); err == nil {
			t.Error("the state was changed")
		}
		if _, err := s.LeaseVM(ctx, "vm_a", pools(t), vm.Capacity{}); err != nil {
			t.Errorf("a change that needs no event: %v", err) // it is starting already
		}
		if err := s.DeleteVM(ctx, "vm_a"); err == nil {
			t.Error("the VM was deleted")
		}
		if _, err := s.CreateVM(ctx, newVM("vm_b"), network.Request{}, pools(t), vm.Capacity{}); err == nil {
			t.Error("a VM was made")
		}
		_, err = s.writes.Exec("ALTER TABLE elsewhere RENAME TO events")
		noError(t, err)
		after, err := s.VM(ctx, access.Owner("acc_a"), "vm_a")
		noError(t, err)
		if after.State != before.State || count(t, s, "vms") != 1 || count(t, s, "events") != 1 {
			t.Errorf("state %s, %d VMs, %d events", after.State, count(t, s, "vms"), count(t, s, "events"))
		}
	})
}

// Of a change that is not committed when the process ends, neither the change nor its
// event is stored.
func TestNoEventWithoutItsChange(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		added := s.EventAdded()
		taken := newVM("vm_b")
		createVM(t, s, taken)
		select {
		case <-added:
		default:
			t.Error("no reader was woken")
		}
		added = s.EventAdded()
		again := newVM("vm_c")
		again.Name = taken.Name
		_, err := s.CreateVM(t.Context(), again, network.Request{}, pools(t), vm.Capacity{})
		hasCode(t, err, errs.Conflict, "name_taken")
		begun, err := s.writes.BeginTxx(t.Context(), nil)
		noError(t, err)
		noError(t, (&tx{Tx: begun, host: testHost, keys: s.keys}).deleteVM(t.Context(), "vm_b"))
		noError(t, begun.Rollback())
		select {
		case <-added:
			t.Error("a reader was woken for nothing")
		default:
		}
		equal(t, len(allEvents(t, s, event.Filter{Scope: access.Everyone})), 1)
		last, err := s.LastEvent(t.Context())
		noError(t, err)
		equal(t, last, int64(1))
	})
}

// A reader that continues after the last number it has seen misses no event, however
// many goroutines write at once, and the events of each VM match its row.
func TestResumedReaderMissesNoEvent(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		const writers, changes = 5, 40
		for i := range writers {
			createVM(t, s, newVM(fmt.Sprintf("vm_%d", i)))
		}
		var writing errgroup.Group
		for i := range writers {
			writing.Go(func() error {
				for n := range changes {
					state := []vm.State{vm.Running, vm.Paused}[n%2]
					if _, err := s.UpdateVM(context.Background(), fmt.Sprintf("vm_%d", i), func(v *vm.VM) { v.State = state }); err != nil {
						return err
					}
				}
				return nil
			})
		}
		const want = writers * (changes + 1)
		var last int64
		states := map[string]vm.State{}
		for last < want {
			added := s.EventAdded()
			page, through, err := s.Events(t.Context(), event.Filter{Scope: access.Everyone, After: last, Limit: 7})
			noError(t, err)
			for _, e := range page {
				if last++; e.Seq != last {
					t.Fatalf("event %d follows on %d", e.Seq, last-1)
				}
				var data struct{ From, To vm.State }
				noError(t, json.Unmarshal(e.Data, &data))
				if e.Type == event.VMStateChanged && states[e.VMID] != "" && states[e.VMID] != data.From {
					t.Fatalf("%s changes from %s, but was %s", e.VMID, data.From, states[e.VMID])
				}
				states[e.VMID] = data.To
			}
			if through != last {
				t.Fatalf("read through %d, the last is %d", through, last)
			}
			if len(page) == 0 {
				<-added
			}
		}
		noError(t, writing.Wait())
		for id, state := range states {
			v, err := s.VM(t.Context(), access.Everyone, id)
			noError(t, err)
			equal(t, v.State, state)
		}
	})
}

func TestEventFilters(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		add := func(owner, vmID string, kind event.Type) {
			e := event.Of(kind, "m", nil)
			e.OwnerID, e.VMID = owner, vmID
			noError(t, s.AppendEvents(ctx, e))
		}
		add("acc_a", "vm_a", event.VMCreated)
		add("acc_a", "vm_b", event.VMCreated)
		add("acc_b", "vm_c", event.VMCreated)
		add("acc_a", "", event.WebhookFailed)
		add("acc_a", "vm_a", event.VMDeleted)
		times := allEvents(t, s, event.Filter{Scope: access.Everyone})
		for name, c := range map[string]struct {
			filter event.Filter
			want   []int64
		}{
			"all":              {event.Filter{Scope: access.Everyone}, []int64{1, 2, 3, 4, 5}},
			"an owner's":       {event.Filter{Scope: access.Owner("acc_a")}, []int64{1, 2, 4, 5}},
			"one VM's":         {event.Filter{Scope: access.Owner("acc_a"), VMID: "vm_a"}, []int64{1, 5}},
			"another's VM":     {event.Filter{Scope: access.Owner("acc_b"), VMID: "vm_a"}, nil},
			"after":            {event.Filter{Scope: access.Everyone, After: 3}, []int64{4, 5}},
			"after the end":    {event.Filter{Scope: access.Everyone, After: 5}, nil},
			"a type":           {event.Filter{Scope: access.Everyone, Types: []event.Pattern{"vm.created"}}, []int64{1, 2, 3}},
			"two types":        {event.Filter{Scope: access.Everyone, Types: []event.Pattern{"vm.deleted", "webhook.*"}}, []int64{4, 5}},
			"a star":           {event.Filter{Scope: access.Everyone, Types: []event.Pattern{"*"}}, []int64{1, 2, 3, 4, 5}},
			"not a LIKE":       {event.Filter{Scope: access.Everyone, Types: []event.Pattern{"vm_created", "v%.*"}}, nil},
			"since":            {event.Filter{Scope: access.Everyone, Since: times[2].At}, []int64{3, 4, 5}},
			"since the future": {event.Filter{Scope: access.Everyone, Since: time.Now().Add(time.Hour)}, nil},
			"bytes no id has":  {event.Filter{Scope: access.Owner("acc_a"), VMID: "\x00"}, nil},
		} {
			var got []int64
			for _, e := range allEvents(t, s, c.filter) {
				got = append(got, e.Seq)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		}
		page, through, err := s.Events(ctx, event.Filter{Scope: access.Owner("acc_a"), Limit: 3})
		noError(t, err)
		if len(page) != 3 || through != 4 {
			t.Errorf("a page of %d through %d", len(page), through)
		}
		_, through, err = s.Events(ctx, event.Filter{Scope: access.Owner("acc_b"), After: 3, Limit: 3})
		noError(t, err)
		equal(t, through, int64(5)) // events that do not match are not read again
	})
}

func TestPruneEvents(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for i := range 30 {
			e := event.Of([]event.Type{event.VMConditionChanged, event.VMOperation}[i%2], "m", nil)
			e.OwnerID, e.VMID = "acc_a", []string{"vm_a", "vm_b", "vm_a"}[i%3]
			if i == 5 { // of vm_a, and no change of a condition
				e.Actor.Kind = event.Guest
			}
			noError(t, s.AppendEvents(ctx, e))
		}
		left := func(f event.Filter) int { return len(allEvents(t, s, f)) }
		remove := func(want int) func(int, error) {
			return func(n int, err error) {
				t.Helper()
				noError(t, err)
				equal(t, n, want)
			}
		}
		ids, through, err := s.VMsWithEvents(ctx, 0)
		noError(t, err)
		if len(ids) != 2 || through != 30 {
			t.Errorf("%v through %d", ids, through)
		}
		if ids, _, err := s.VMsWithEvents(ctx, 29); err != nil || len(ids) != 1 {
			t.Errorf("%v, %v", ids, err)
		}
		remove(0)(s.PruneVMEvents(ctx, "vm_a", 20, 100))
		remove(0)(s.PruneGuestEvents(ctx, "vm_a", 11, 100))
		remove(7)(s.PruneGuestEvents(ctx, "vm_a", 4, 100))
		equal(t, left(event.Filter{Scope: access.Everyone, VMID: "vm_a", Types: []event.Pattern{"vm.operation"}}), 9)
		remove(2)(s.PruneVMEvents(ctx, "vm_a", 8, 2)) // no more than a batch
		remove(3)(s.PruneVMEvents(ctx, "vm_a", 8, 100))
		equal(t, left(event.Filter{Scope: access.Everyone, VMID: "vm_b"}), 10)
		remove(3)(s.PruneEventsOver(ctx, 15, 100))
		remove(0)(s.PruneEventsOver(ctx, 15, 100))
		kept := allEvents(t, s, event.Filter{Scope: access.Everyone})
		equal(t, kept[len(kept)-1].Seq, int64(30)) // the newest stay
		remove(0)(s.PruneOldEvents(ctx, kept[0].At, 100))
		remove(15)(s.PruneOldEvents(ctx, time.Now().Add(time.Minute), 100))
		equal(t, left(event.Filter{Scope: access.Everyone}), 0)
		noError(t, s.AppendEvents(ctx, event.Event{OwnerID: "acc_a", Data: []byte("{}")}))
		equal(t, allEvents(t, s, event.Filter{Scope: access.Everyone})[0].Seq, int64(31)) // numbers are not reused
	})
}

// TestOldestEvent removes events from the beginning of the log until none is left.
func TestOldestEvent(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, "acc_a")
		oldest := func(want int64) {
			t.Helper()
			seq, at, err := s.OldestEvent(t.Context())
			noError(t, err)
			if seq != want || time.Since(at) > time.Hour {
				t.Errorf("the oldest is %d of %s, want %d", seq, at, want)
			}
		}
		oldest(1)
		for range 3 {
			noError(t, s.AppendEvents(t.Context(), event.Event{OwnerID: "acc_a", VMID: "vm_a", Type: event.VMOperation}))
		}
		oldest(1)
		for _, left := range []int{1, 0} {
			_, err := s.PruneEventsOver(t.Context(), left, 10)
			noError(t, err)
			oldest(int64(4 - left))
		}
	})
}
