package httpapi_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/idempotency"
)

// fakeRequests remembers one id for each key.
type fakeRequests struct {
	mu   sync.Mutex
	keys map[string]rememberedKey
	late bool // the next lookup finds nothing yet
}

type rememberedKey struct{ hash, id string }

func (f *fakeRequests) Made(_ context.Context, r idempotency.Request) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, found := f.keys[r.Key]
	if late := f.late; late || !found {
		f.late = false
		return nil, nil
	}
	if known.hash != r.Hash {
		return nil, idempotency.Reused()
	}
	return []string{known.id}, nil
}

func (f *fakeRequests) Remember(ctx context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := idempotency.Of(ctx)
	if _, found := f.keys[r.Key]; found {
		return idempotency.Used(nil)
	}
	if f.keys == nil {
		f.keys = map[string]rememberedKey{}
	}
	if r.Key != "" {
		f.keys[r.Key] = rememberedKey{r.Hash, id}
	}
	return nil
}

func (f *fakeRequests) Forget(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, known := range f.keys {
		if known.id == id {
			delete(f.keys, key)
		}
	}
	return nil
}

func (s *server) keyed(t *testing.T, key, target, body string) reply {
	t.Helper()
	r := s.request(t, "POST", target, body)
	r.Header.Set("Idempotency-Key", key)
	return s.send(t, r)
}

func TestIdempotencyKey(t *testing.T) {
	s := newServer(t)
	made := s.keyed(t, "k1", "/vms", `{"vcpu_count":2,"labels":{"a":"1","b":"2"}}`)
	if wantStatus(t, made, 201); made.Header.Get("Idempotency-Replayed") != "" {
		t.Error("the first answer is marked as a replay")
	}
	again := s.keyed(t, "k1", "/vms?wait=ready", ` { "labels" : {"b":"2","a":"1"}, "vcpu_count": 2 } `)
	wantStatus(t, again, 201)
	if again.Header.Get("Idempotency-Replayed") != "true" || again.Header.Get("Location") != "/vms/"+knownVM || !s.vms.askedFor("await created") {
		t.Errorf("the same request in other words: %v", again.Header)
	}
	for target, body := range map[string]string{"/vms": `{"vcpu_count":3}`, "/vms/" + knownVM + "/fork": `{}`} {
		other := s.keyed(t, "k1", target, body)
		wantStatus(t, other, 409)
		if p := other.problem(t); p.Code != "idempotency_key_reused" || p.Field != "Idempotency-Key" {
			t.Errorf("another request: %+v", p)
		}
	}
	wantStatus(t, s.keyed(t, "k2", "/vms", ""), 201)
	wantStatus(t, s.keyed(t, "k2", "/vms", "{}"), 201)
	for _, bad := range []string{"a b", strings.Repeat("k", 256), "ä"} {
		reply := s.keyed(t, bad, "/vms", "{}")
		wantStatus(t, reply, 400)
		if p := reply.problem(t); p.Field != "Idempotency-Key" || !strings.Contains(p.Error, "255") {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

// TestConcurrentKey sends a request again before the first has stored its key.
func TestConcurrentKey(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.keyed(t, "k", "/templates", `{"name":"small"}`), 201)
	s.requests.late = true
	again := s.keyed(t, "k", "/templates", `{"name":"small"}`)
	if wantStatus(t, again, 201); again.Header.Get("Idempotency-Replayed") != "true" {
		t.Error("the answer is not marked")
	}
}

// TestKeyOfAnExec runs a command once for two requests, and none again of which the
// guest has lost the record.
func TestKeyOfAnExec(t *testing.T) {
	s := newServer(t)
	const target = "/vms/" + knownVM + "/exec"
	run := func(key, body string, replay bool) reply {
		t.Helper()
		reply := s.keyed(t, key, target, body)
		if got := reply.Header.Get("Idempotency-Replayed") == "true"; got != replay {
			t.Errorf("%s: replayed: %v", body, got)
		}
		return reply
	}
	first, again := run("fore", `{"command":"echo once"}`, false), run("fore", `{"command":"echo once"}`, true)
	one, two := decode[api.ExecResult](t, first), decode[api.ExecResult](t, again)
	if one.ID != two.ID || two.Stdout != "once\n" || two.ExitCode != 0 {
		t.Errorf("ran %+v, then %+v", one, two)
	}
	first, again = run("back", `{"command":"sleep 60","background":true}`, false), run("back", `{"command":"sleep 60","background":true}`, true)
	if a, b := decode[api.Exec](t, first), decode[api.Exec](t, again); a.ID != b.ID || again.Header.Get("Location") == "" {
		t.Errorf("ran %+v, then %+v", a, b)
	}
	wantStatus(t, s.call(t, "DELETE", "/vms/"+knownVM+"/execs/"+decode[api.Exec](t, first).ID, ""), 200)
	gone := run("back", `{"command":"sleep 60","background":true}`, false)
	wantStatus(t, gone, 409)
	if p := gone.problem(t); p.Code != "idempotency_object_gone" {
		t.Errorf("%+v", p)
	}
	// One that did not begin leaves its key free.
	wantStatus(t, run("user", `{"command":"true","user":"unknown"}`, false), 400)
	wantStatus(t, run("user", `{"command":"true","user":"root"}`, false), 200)
	if _, found := s.requests.keys["user"]; !found {
		t.Error("its key is not stored")
	}
}

// TestEveryPOSTThatMakesSomethingTakesAKey reads the description.
func TestEveryPOSTThatMakesSomethingTakesAKey(t *testing.T) {
	s := newServer(t)
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name string }
			Responses  map[string]struct{ Headers map[string]any }
		}
	}
	if err := json.Unmarshal(s.call(t, "GET", "/openapi.json", "").body, &doc); err != nil {
		t.Fatal(err)
	}
	// What these do a second time is the same again.
	repeatable := map[string]bool{"/images/{id}/warm": true, "/webhooks/{id}/deliveries/{delivery_id}/retry": true}
	for path, methods := range doc.Paths {
		op, makes := methods["post"], false
		for _, status := range []string{"201", "202"} {
			if _, found := op.Responses[status]; found && !repeatable[path] {
				makes = true
				if op.Responses[status].Headers["Idempotency-Replayed"] == nil && path != "/vms/{id}/exec" {
					t.Errorf("POST %s does not describe Idempotency-Replayed", path)
				}
			}
		}
		takes := false
		for _, p := range op.Parameters {
			takes = takes || p.Name == "Idempotency-Key"
		}
		if makes != takes {
			t.Errorf("POST %s makes something: %v; takes an Idempotency-Key: %v", path, makes, takes)
		}
	}
}
