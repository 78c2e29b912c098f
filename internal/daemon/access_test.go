package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/access"
)

// operation is one of the OpenAPI document.
type operation struct{ method, path, scope string }

// guarded is a daemon with two members, one of whom owns an object of each kind.
type guarded struct {
	*world
	operations []operation
	owner      *client.Client
	other      string            // a key of the member who owns nothing
	ids        map[string]string // of the owner's objects, by the collection
}

func newGuarded(t *testing.T) *guarded {
	w := &world{dir: t.TempDir()}
	w.start(t)
	t.Cleanup(func() { _ = w.end() })
	g := &guarded{world: w, ids: map[string]string{}}
	g.readOperations(t)
	ctx := t.Context()
	keyOf := func(name string) string {
		u, err := w.CreateUser(ctx, api.CreateUser{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		k, err := w.CreateKey(ctx, api.CreateKey{Name: "all", UserID: u.ID})
		if err != nil {
			t.Fatal(err)
		}
		return k.Secret
	}
	g.other = keyOf("other")
	var err error
	if g.owner, err = client.New(w.url(t), keyOf("owner"), client.WithHTTPClient(plain)); err != nil {
		t.Fatal(err)
	}
	g.fill(t)
	return g
}

func (g *guarded) fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	vm, err := g.owner.CreateVM(ctx, api.CreateVM{Name: "web"}, client.CreateOptions{Wait: "running"})
	ok(t, err)
	snap, err := g.owner.CreateSnapshot(ctx, vm.ID, api.CreateSnapshot{Name: "golden"})
	ok(t, err)
	tpl, err := g.owner.CreateTemplate(ctx, api.CreateTemplate{Name: "small"})
	ok(t, err)
	hook, err := g.owner.CreateWebhook(ctx, api.CreateWebhook{URL: "https://example.com/", Events: []string{"*"}})
	ok(t, err)
	rt, err := g.owner.CreateRoute(ctx, vm.ID, api.CreateRoute{TargetPort: 80})
	ok(t, err)
	keys, err := g.owner.ListKeys(ctx)
	ok(t, err)
	g.ids = map[string]string{"vms": vm.ID, "snapshots": snap.ID, "templates": tpl.ID, "webhooks": hook.ID, "routes": rt.ID, "keys": keys[0].ID}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *guarded) readOperations(t *testing.T) {
	t.Helper()
	status, body := g.send(t, key, "GET", "/openapi.json", "")
	var doc struct {
		Paths map[string]map[string]struct {
			Scope string `json:"x-required-scope"`
		}
	}
	if err := json.Unmarshal(body, &doc); err != nil || status != 200 || len(doc.Paths) < 50 {
		t.Fatalf("the document has status %d and %d paths: %v", status, len(doc.Paths), err)
	}
	for path, item := range doc.Paths {
		for method, op := range item {
			_, known := access.ParseRight(op.Scope)
			if !known && op.Scope != "open" && op.Scope != "any" {
				t.Errorf("%s %s needs %q, which is no scope", method, path, op.Scope)
			}
			g.operations = append(g.operations, operation{strings.ToUpper(method), path, op.Scope})
		}
	}
}

func (w *world) url(t *testing.T) string {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
	ok(t, err)
	return "http://" + strings.TrimSpace(string(addr))
}

// plain keeps no connections.
var plain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// send sends a request as a client with a key, "" for none.
func (g *guarded) send(t *testing.T, secret, method, path, body string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // of streams
	r, err := http.NewRequestWithContext(ctx, method, g.url(t)+path, strings.NewReader(body))
	ok(t, err)
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	reply, err := plain.Do(r)
	ok(t, err)
	defer func() { _ = reply.Body.Close() }()
	if strings.HasPrefix(reply.Header.Get("Content-Type"), "text/event-stream") {
		return reply.StatusCode, nil
	}
	text, err := io.ReadAll(reply.Body)
	ok(t, err)
	return reply.StatusCode, text
}

// bodies are what operations need so that they get as far as to look for the object.
var bodies = map[string]string{
	"POST /vms/{id}/exec": `{"command":"true"}`, "POST /vms/{id}/routes": `{"target_port":80}`, "POST /vms/{id}/share": `{"port":80}`,
	"POST /vms/{id}/execs/{exec_id}/signal": `{"signal":"TERM"}`, "POST /vms/{id}/execs/{exec_id}/stdin": `{}`, "POST /vms/{id}/execs/{exec_id}/resize": `{"rows":1,"cols":1}`,
	"POST /vms/{id}/files/mkdir": `{"path":"/tmp/d"}`, "POST /vms/{id}/files/rename": `{"from":"/tmp/d","to":"/tmp/e"}`,
	"POST /vms/{id}/connect": `{"public_key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"}`,
}

// request returns path and body of a request for an object with an id.
func (o operation) request(id string) (path, body string) {
	path = strings.NewReplacer("{id}", id, "{exec_id}", "exec_1", "{delivery_id}", "dlv_1").Replace(o.path)
	body = bodies[o.method+" "+o.path]
	switch {
	case o.method == "PATCH":
		body = "{}"
	case strings.HasSuffix(path, "/wait"):
		path += "?for=running"
	case strings.HasSuffix(path, "/tunnel"):
		path += "?port=80"
	case strings.Contains(path, "/files") && body == "":
		path += "?path=/tmp"
	}
	return path, body
}

func (o operation) collection() string { return strings.Split(o.path, "/")[1] }

// Each operation refuses callers without a key, and keys with each scope but its own.
func TestEachOperationNeedsItsScope(t *testing.T) {
	g := newGuarded(t)
	secrets := map[string]string{}
	for _, right := range access.EveryRight() {
		k, err := g.CreateKey(t.Context(), api.CreateKey{Name: right.String(), Scopes: []string{right.String()}})
		ok(t, err)
		secrets[right.String()] = k.Secret
	}
	for _, o := range g.operations {
		if o.scope == "open" {
			continue
		}
		path, _ := o.request("nothing")
		if status, body := g.send(t, "", o.method, path, ""); status != 401 {
			t.Errorf("%s %s without a key: %d %s", o.method, path, status, body)
		}
		for scope, secret := range secrets {
			sufficient := scope == o.scope || o.scope == "any" || scope == "admin"
			if sufficient && o.method != "GET" && !strings.Contains(o.path, "{id}") {
				continue // it would make something
			}
			status, body := g.send(t, secret, o.method, path, "")
			if (status == 403) == sufficient || status == 401 {
				t.Errorf("%s %s with the scope %s: %d %s", o.method, path, scope, status, body)
			}
		}
	}
}

// A member who asks for an object of another gets the answer for one that does not exist.
func TestOthersObjectsDoNotExist(t *testing.T) {
	g := newGuarded(t)
	_, err := g.UpdateImage(t.Context(), "img_default", api.UpdateImage{Visibility: new("private")})
	ok(t, err)
	g.ids["images"] = "img_default"
	for _, o := range g.operations {
		if !strings.Contains(o.path, "{id}") {
			continue
		}
		id := g.ids[o.collection()]
		want := 404
		switch {
		case o.scope == "admin", o.collection() == "users":
			want, id = 403, "acc_admin"
		case id == "":
			t.Errorf("%s %s is about %s, of which this test has none", o.method, o.path, o.collection())
		}
		path, body := o.request(id)
		status, text := g.send(t, g.other, o.method, path, body)
		if o.path == "/vms/{id}/snapshots" || o.path == "/vms/{id}/events" { // also of deleted VMs: an empty list
			if trimmed := string(bytes.TrimSpace(text)); status != 404 && trimmed != "[]" {
				t.Errorf("%s %s: %d %s", o.method, path, status, text)
			}
			continue
		}
		if status != want {
			t.Errorf("%s %s as another member: %d, want %d: %s", o.method, path, status, want, text)
		}
		if want != 404 {
			continue
		}
		missing := strings.Repeat("0", len(id))
		path, body = o.request(missing)
		_, unknown := g.send(t, g.other, o.method, path, body)
		if a, b := problemCode(text), problemCode(unknown); a != b || a == "" {
			t.Errorf("%s %s: another's object has the code %q, a missing one %q", o.method, o.path, a, b)
		}
	}
	if v, err := g.owner.GetVM(t.Context(), g.ids["vms"]); err != nil || v.State != "running" {
		t.Errorf("the owner has %s, %v", v.State, err)
	}
}

func problemCode(body []byte) string {
	var problem api.Problem
	_ = json.Unmarshal(body, &problem)
	return problem.Code
}

// Lists have nothing of another user.
func TestListsAreOfTheCaller(t *testing.T) {
	g := newGuarded(t)
	for _, o := range g.operations {
		if o.method != "GET" || strings.Contains(o.path, "{") || slices.Contains([]string{"open", "any"}, o.scope) {
			continue
		}
		_, text := g.send(t, g.other, "GET", o.path, "")
		for _, id := range g.ids {
			if bytes.Contains(text, []byte(id)) {
				t.Errorf("GET %s as another member has %s", o.path, id)
			}
		}
	}
}
