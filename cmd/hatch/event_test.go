package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// withStory gives the fake a log about a VM that runs, one that failed and one that is gone.
func withStory(f *fakeServer) *fakeServer {
	admin := api.Actor{Kind: api.ActorKey, ID: "key_admin0000001", Name: "admin"}
	guest, hatchd := api.Actor{Kind: api.ActorGuest}, api.Actor{Kind: api.ActorHatchd}
	add := func(ago time.Duration, vmID, name, kind, message string, by api.Actor, data map[string]any) {
		f.events = append(f.events, api.Event{
			Seq: int64(len(f.events) + 1), ID: fmt.Sprintf("evt_%d", len(f.events)), Type: kind, VMID: vmID, VMName: name,
			Message: message, Actor: by, RequestID: "req_1", Data: data, At: api.Time{Time: testNow.Add(-ago)},
		})
	}
	web, gone, broken := "vm_web000000001", "vm_gone00000001", "vm_db0000000003"
	add(3*time.Hour, gone, "old", "vm.created", "created from img_default with 1 CPU", admin, nil)
	add(2*time.Hour, gone, "old", "vm.deleted", "deleted", admin, nil)
	add(90*time.Minute, web, "web", "vm.created", "created from img_default with 2 CPUs", admin, nil)
	add(90*time.Minute, web, "web", "vm.state_changed", "running", admin, nil)
	add(89*time.Minute, web, "web", "vm.condition_changed", "the agent in the guest\x1b[31m answers", guest, map[string]any{"to": "true"})
	add(10*time.Minute, web, "web", "vm.state_changed", "stopped: the guest powered itself off", guest, nil)
	add(10*time.Minute, web, "web", "vm.condition_changed", "agent_ready is unknown", guest, map[string]any{"to": "unknown"})
	add(9*time.Minute, web, "web", "vm.operation", "start took 12ms", api.Actor{Kind: api.ActorRule, Name: "wake on connect"}, nil)
	add(time.Minute, broken, "", "vm.state_changed", "in error: the VMM ended", hatchd, nil)
	return f
}

// TestWhyTellsWhatCloudInitHasNotDone has a VM that runs, and whose user data was not
// applied, or not all of it.
func TestWhyTellsWhatCloudInitHasNotDone(t *testing.T) {
	for _, c := range []struct {
		userData, status, reason, message string
		want                              string
	}{
		{"x", api.StatusTrue, "Done", "", "web is running, and all is well."},
		{"", api.StatusFalse, "Absent", "the image has no cloud-init", "web is running, and all is well."},
		{"x", api.StatusFalse, "Absent", "the image has no cloud-init; user_data was not applied", "web is running, but the image has no cloud-init; user_data was not applied. See its console: hatch logs web"},
		{"x", api.StatusFalse, "Failed", "cloud-init failed: line 3", "web is running, but cloud-init failed: line 3. See cloud-init's log: hatch logs --source cloud-init web"},
		{"x", api.StatusTrue, "Degraded", "cloud-init is done, with warnings: odd", "web is running, but cloud-init is done, with warnings: odd. See cloud-init's log: hatch logs --source cloud-init web"},
	} {
		f := withStory(newFake(t))
		f.vms[0].UserData = c.userData
		f.vms[0].Conditions = append(f.vms[0].Conditions, api.Condition{Type: api.ConditionCloudInit, Status: c.status, Reason: c.reason, Message: c.message})
		s := newSession(t, f)
		if s.hatch("why", "web"); !strings.HasSuffix(s.stdout.String(), "\n"+c.want+"\n") {
			t.Errorf("%s: %s", c.reason, &s.stdout)
		}
	}
}

// TestWhyTellsOfAGuestThatStandsStill has guests that run, of which one neither answers
// nor uses CPU time.
func TestWhyTellsOfAGuestThatStandsStill(t *testing.T) {
	for _, c := range []struct {
		agent       string
		standsStill bool
		want        bool
	}{
		{api.StatusTrue, true, false}, {api.StatusFalse, false, false}, {api.StatusFalse, true, true}, {api.StatusUnknown, true, true},
	} {
		f := withStory(newFake(t))
		f.vms[0].Conditions[0].Status, f.standsStill = c.agent, c.standsStill
		s := newSession(t, f)
		s.hatch("why", "web")
		if got := strings.HasSuffix(s.stdout.String(), "stand still. To restart it: hatch restart web\n"); got != c.want {
			t.Errorf("%+v: %s", c, &s.stdout)
		}
	}
}

func TestEvents(t *testing.T) {
	f := withStory(newFake(t))
	for name, args := range map[string]string{
		"events.txt":      "events",
		"events-wide.txt": "events web -o wide",
		"why.txt":         "why web",
		"why-tail.txt":    "why web --tail 2",
		"why-error.txt":   "why vm_db0000000003",
		"why-gone.txt":    "why old",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
	s := newSession(t, f)
	if s.hatch("events", "--since", "2h", "--type", "vm.created"); !f.called("GET /events?after=0&limit=1000&since=2026-03-06T10%3A00%3A00Z&type=vm.created") {
		t.Errorf("called %v", f.calls)
	}
	if code := s.hatch("why", "none"); code != exitNotFound || !strings.Contains(s.stderr.String(), `there is no VM "none"`) {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
	f.snapshots[1].VMID = "vm_gone00000001"
	if s.hatch("why", "old"); !strings.Contains(s.stdout.String(), "old was deleted; its snapshots are left. To see them: hatch snapshot ls vm_gone00000001\n") {
		t.Errorf("with a snapshot left: %s", &s.stdout)
	}
	for _, args := range []string{"events --since yesterday", "events a b", "events -f -o yaml", "why", "why web --tail -1"} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code != exitUsage || !strings.Contains(s.stderr.String(), "hint: hatch ") {
				t.Errorf("%s: exit code %d: %s", args, code, &s.stderr)
			}
		})
	}
}

// TestEventsGoOn loses the connection twice, once before there was an event.
func TestEventsGoOn(t *testing.T) {
	f := withStory(newFake(t))
	ctx, leave := context.WithCancel(t.Context())
	var asked []string
	streams := []func(w http.ResponseWriter){
		func(w http.ResponseWriter) { _, _ = io.WriteString(w, ":\nid: 7\n\nid: 8\nevent: vm.deleted\n") }, // half an event
		func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, "id: 8\nevent: vm.deleted\ndata: {\"seq\":8,\"type\":\"vm.deleted\",\"vm_name\":\"web\",\"message\":\"deleted\",\"actor\":{\"kind\":\"guest\"}}\n\n")
		},
		func(http.ResponseWriter) { leave() },
	}
	f.onStream = func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("after"))
		streams[0](w)
		streams = streams[1:]
	}
	s := newSession(t, f)
	s.ctx = ctx
	s.hatch("events", "-f")
	if got := strings.Join(asked, " "); got != " 7 8" {
		t.Errorf("asked for what comes after %q", got)
	}
	if got := s.stdout.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "the guest      deleted") {
		t.Errorf("got %q", got)
	}
	if !strings.Contains(s.stderr.String(), "connecting again") {
		t.Errorf("nothing is said of the lost connection: %s", &s.stderr)
	}
}

func TestEventsRefused(t *testing.T) {
	f := newFake(t)
	f.answer["GET /events"] = api.Problem{Status: 400, Code: "invalid_type", Error: "type: \"x\" is not an event type"}
	s := newSession(t, f)
	if code := s.hatch("events", "-f", "--type", "x"); code != exitOwn || !strings.Contains(s.stderr.String(), "not an event type") {
		t.Errorf("exit code %d: %s", code, &s.stderr)
	}
}
