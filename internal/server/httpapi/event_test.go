package httpapi_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

const goneVM = "vm_gone00000000"

func TestEventPages(t *testing.T) {
	s := newServer(t)
	s.events.log = []event.Event{sampleEvent(1, knownVM), sampleEvent(2, goneVM), sampleEvent(3, "")}
	reply := s.call(t, "GET", "/events?limit=2&type=vm.*&type=webhook.*&since=2026-01-02T03:04:05Z", "")
	wantStatus(t, reply, 200)
	got := decode[[]api.Event](t, reply)
	if len(got) != 2 || got[0].Actor != (api.Actor{Kind: "key", ID: "key_good", Name: "admin"}) || got[0].RequestID != "req_1" ||
		got[0].Data["to"] != "stopped" || got[0].VMName != "web" || got[0].Message != "stopped: <off>" {
		t.Errorf("got %+v", got)
	}
	link := reply.Header.Get("Link")
	if link != `</events?after=2&limit=2&since=2026-01-02T03%3A04%3A05Z&type=vm.%2A&type=webhook.%2A>; rel="next"` {
		t.Errorf("the next page is %s", link)
	}
	if f := s.events.filter; f.Scope != access.Owner(goodAcc) || len(f.Types) != 2 || !f.Since.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || f.After != 0 {
		t.Errorf("asked for %+v", f)
	}
	s.call(t, "GET", "/events?since=90m&vm="+knownVM, "")
	if f := s.events.filter; f.VMID != knownVM || time.Since(f.Since).Round(time.Minute) != 90*time.Minute {
		t.Errorf("asked for %+v", f)
	}
}

// TestEventsOfADeletedVM reads the events of a deleted VM until they are pruned.
func TestEventsOfADeletedVM(t *testing.T) {
	s := newServer(t)
	s.events.log = []event.Event{sampleEvent(2, goneVM)}
	wantStatus(t, s.call(t, "GET", "/vms/"+goneVM+"/events", ""), 200)
	wantStatus(t, s.call(t, "GET", "/vms/vm_never0000000/events", ""), 404)
	r := s.request(t, "GET", "/vms/"+goneVM+"/events", "")
	r.Header.Set("Authorization", "Bearer "+otherKey)
	wantStatus(t, s.send(t, r), 404)
}

func TestEventRefusals(t *testing.T) {
	s := newServer(t)
	for query, code := range map[string]string{
		"type=vm.delet": "invalid_type", "since=yesterday": "invalid_since", "since=-5m": "invalid_since",
		"after=x": "invalid_after", "after=-1": "invalid_after", "limit=0": "invalid_limit", "limit=1001": "invalid_limit",
	} {
		reply := s.call(t, "GET", "/events?"+query, "")
		wantStatus(t, reply, 400)
		if got := reply.problem(t).Code; got != code {
			t.Errorf("%s: %s, want %s", query, got, code)
		}
	}
	s.events.follow = func(context.Context, event.Filter, func([]event.Event, int64) error) error {
		return errs.InvalidField("after", "99 is beyond the end")
	}
	r := s.request(t, "GET", "/events", "")
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Last-Event-ID", "99")
	wantStatus(t, s.send(t, r), 400)
}

// TestEventStream reads a stream as a browser would.
func TestEventStream(t *testing.T) {
	s := newServer(t)
	goOn, left := make(chan struct{}), make(chan error, 1)
	s.events.follow = func(ctx context.Context, f event.Filter, send func([]event.Event, int64) error) error {
		if f.After != 41 || f.Scope != access.Owner(goodAcc) || f.VMID != knownVM {
			t.Errorf("asked for %+v", f)
		}
		_ = send(nil, f.After)
		<-goOn
		_ = send([]event.Event{sampleEvent(42, knownVM)}, 42)
		<-ctx.Done()
		left <- ctx.Err()
		return ctx.Err()
	}
	ctx, leave := context.WithTimeout(t.Context(), 10*time.Second)
	defer leave()
	r := s.request(t, "GET", "/vms/"+knownVM+"/events?after=7", "").WithContext(ctx)
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Last-Event-ID", "41")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("Content-Type %s", kind)
	}
	lines := bufio.NewReader(resp.Body)
	want := []string{
		":", "id: 41", "", "id: 42", "event: vm.state_changed",
		`data: {"seq":42,"id":"evt_42","type":"vm.state_changed","vm_id":"` + knownVM + `","vm_name":"web","message":"stopped: \u003coff\u003e",` +
			`"actor":{"kind":"key","id":"key_good","name":"admin"},"request_id":"req_1","data":{"from":"running","to":"stopped"},"at":"2026-03-06T11:00:00.123Z"}`, "",
	}
	for i, line := range want {
		if i == 3 {
			close(goOn) // the beat was read before there was an event
		}
		got, err := lines.ReadString('\n')
		if strings.TrimSuffix(got, "\n") != line || err != nil {
			t.Fatalf("line %d is %q, %v; want %q", i, got, err, line)
		}
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestEventStreamBeginsNow(t *testing.T) {
	s := newServer(t)
	for query, want := range map[string]int64{"": event.FromNow, "?after=0": 0, "?since=1h": 0, "?after=5&since=1h": 5} {
		s.events.follow = func(_ context.Context, f event.Filter, send func([]event.Event, int64) error) error {
			if f.After != want {
				t.Errorf("%q begins after %d, want %d", query, f.After, want)
			}
			return send(nil, f.After)
		}
		r := s.request(t, "GET", "/events"+query, "")
		r.Header.Set("Accept", "text/event-stream")
		wantStatus(t, s.send(t, r), 200)
	}
}

func TestClientEvents(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	s.events.log = []event.Event{sampleEvent(1, knownVM), sampleEvent(2, knownVM), sampleEvent(3, knownVM)}
	seen := int64(0)
	for e, err := range c.ListEvents(t.Context(), client.EventOptions{VM: knownVM, PageSize: 1}) {
		if seen++; err != nil || e.Seq != seen {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if seen != 3 {
		t.Errorf("%d events listed", seen)
	}
	s.events.follow = func(_ context.Context, f event.Filter, send func([]event.Event, int64) error) error {
		if err := errors.Join(send(nil, f.After), send([]event.Event{sampleEvent(f.After+1, "")}, f.After+1)); err != nil {
			return err
		}
		return errors.New("the database is gone")
	}
	opts := client.EventOptions{After: 3}
	for e, err := range c.FollowEvents(t.Context(), &opts) {
		if seen++; seen == 4 && (err != nil || e.Seq != 4) || seen == 5 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if seen != 5 || opts.After != 4 {
		t.Errorf("%d events received; the stream continues after %d", seen, opts.After)
	}
	s.events.follow = func(_ context.Context, _ event.Filter, send func([]event.Event, int64) error) error {
		return send(nil, 77)
	}
	opts = client.EventOptions{After: client.FromNow}
	for _, err := range c.FollowEvents(t.Context(), &opts) {
		if opts.After != 77 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the stream continues after %d, %v", opts.After, err)
		}
	}
	for _, err := range c.FollowEvents(t.Context(), &client.EventOptions{VM: "vm_never0000000"}) {
		if !client.IsNotFound(err) {
			t.Error(err)
		}
	}
}

// TestCausesTravel checks the cause that the service gets from a request.
func TestCausesTravel(t *testing.T) {
	s := newServer(t)
	s.vms.start = func(ctx context.Context) (vm.VM, error) {
		want := event.Cause{Actor: event.Actor{Kind: event.Key, ID: "key_good", Name: "admin"}, RequestID: "abc"}
		if got := event.CauseOf(ctx); got != want {
			t.Errorf("got %+v", got)
		}
		return sampleVM(knownVM), nil
	}
	r := s.request(t, "POST", "/vms/"+knownVM+"/start", "")
	r.Header.Set("X-Request-Id", "abc")
	wantStatus(t, s.send(t, r), 200)
	if !strings.Contains(s.log.String(), `"route":"POST /vms/{id}/start"`) {
		t.Error("the log has lost the route")
	}
}
