//go:build system

package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

// apiOperation is one of the OpenAPI document that hatchd serves.
type apiOperation struct {
	method, path string
	admin        bool // whether it is for the scope admin
	upgrades     bool // whether it opens a WebSocket
}

func (u *users) readOperations(t *testing.T) []apiOperation {
	t.Helper()
	got := u.send(t, u.admin, apiOperation{method: "GET"}, apiRequest{path: "/openapi.json"})
	var doc struct {
		Paths map[string]map[string]struct {
			Scope     string `json:"x-required-scope"`
			Responses map[string]any
		}
	}
	if err := json.Unmarshal(got.body, &doc); err != nil || len(doc.Paths) < 50 {
		t.Fatalf("the document has %d paths: %v", len(doc.Paths), err)
	}
	var all []apiOperation
	for path, item := range doc.Paths {
		for method, o := range item {
			_, upgrades := o.Responses["101"]
			all = append(all, apiOperation{strings.ToUpper(method), path, o.Scope == "admin", upgrades})
		}
	}
	return all
}

type apiRequest struct{ path, body string }

// neededBodies are what operations need to get as far as to look for the object.
var neededBodies = map[string]string{
	"POST /vms/{id}/exec": `{"command": "true"}`, "POST /vms/{id}/routes": `{"target_port": 80}`, "POST /vms/{id}/share": `{"port": 80}`,
	"POST /vms/{id}/execs/{exec_id}/signal": `{"signal": "KILL"}`, "POST /vms/{id}/execs/{exec_id}/stdin": `{}`, "POST /vms/{id}/execs/{exec_id}/resize": `{"rows": 1, "cols": 1}`,
	"POST /vms/{id}/files/mkdir": `{"path": "/tmp/d"}`, "POST /vms/{id}/files/rename": `{"from": "/etc/passwd", "to": "/etc/shadow"}`,
	"POST /vms/{id}/connect": `{"public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"}`,
}

// request returns one about an object of a member, nil for one without commands.
func (o apiOperation) request(id string, of *member) apiRequest {
	exec, delivery := "exec_1", "dlv_1"
	if of != nil {
		exec, delivery = of.exec.ID, of.delivery
	}
	r := apiRequest{strings.NewReplacer("{id}", id, "{exec_id}", exec, "{delivery_id}", delivery).Replace(o.path), neededBodies[o.method+" "+o.path]}
	switch {
	case o.method == "PATCH":
		r.body = "{}"
	case strings.HasSuffix(r.path, "/wait"):
		r.path += "?for=running"
	case strings.HasSuffix(r.path, "/tunnel"):
		r.path += "?port=8080"
	case strings.Contains(r.path, "/files") && r.body == "":
		r.path += "?path=/etc/passwd"
	}
	return r
}

func (o apiOperation) collection() string { return strings.Split(o.path, "/")[1] }

// send sends a request as a client with a key, "" for none.
func (u *users) send(t *testing.T, key string, o apiOperation, request apiRequest) webAnswer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), normalReply)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, o.method, u.daemon.URL()+request.path, strings.NewReader(request.body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		r.Header.Set("X-API-Key", key)
	}
	if o.upgrades {
		r.Header = http.Header{
			"X-Api-Key": {key}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		}
	}
	resp, err := direct.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got := webAnswer{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		got.body, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", o.method, request.path, err)
	}
	return got
}

// testOthersObjects walks all operations on one object: for another member, and for an
// admin, those of alice do not exist. They stay as they are.
func (u *users) testOthersObjects(t *testing.T) {
	lists := u.aliceLists(t)
	tried := 0
	for _, o := range u.operations {
		if !strings.Contains(o.path, "{id}") {
			continue
		}
		switch {
		case o.admin, o.collection() == "users": // not for members at all
			u.requireStatus(t, o, "bob", u.bob.key.Secret, o.request(u.alice.user.ID, nil), 403)
			continue
		case o.collection() == "images": // see testShared
			continue
		}
		tried++
		id := u.alice.ids[o.collection()]
		if id == "" {
			t.Errorf("%s %s is about %s, of which this test has none", o.method, o.path, o.collection())
			continue
		}
		u.requireStatus(t, o, "bob", u.bob.key.Secret, o.request(id, u.alice), 404)
		if o.collection() != "keys" { // which admins revoke
			u.requireStatus(t, o, "the admin", u.admin, o.request(id, u.alice), 404)
		}
	}
	t.Logf("%d operations", tried)
	for path, before := range lists {
		if now := u.aliceLists(t)[path]; now != before {
			t.Errorf("%s was\n%s\nand is\n%s", path, before, now)
		}
	}
	vm, err := u.alice.GetVM(t.Context(), u.alice.vm.ID)
	if err != nil || vm.State != api.StateRunning {
		t.Errorf("the VM is %s, %v", vm.State, err)
	}
	command, err := u.alice.GetExec(t.Context(), u.alice.vm.ID, u.alice.exec.ID)
	if err != nil || command.State != "running" {
		t.Errorf("the command is %s, %v", command.State, err)
	}
}

// requireStatus checks the status of an answer. Lists of what belongs to a VM are empty
// for one that does not exist: they also have what is left of deleted ones.
func (u *users) requireStatus(t *testing.T, o apiOperation, who, key string, request apiRequest, want int) {
	t.Helper()
	got := u.send(t, key, o, request)
	if strings.TrimSpace(string(got.body)) == "[]" && (o.path == "/vms/{id}/snapshots" || o.path == "/vms/{id}/events") {
		return
	}
	if got.status != want {
		t.Errorf("%s %s as %s: got %d, want %d: %s", o.method, request.path, who, got.status, want, got.body)
	}
}

// aliceLists returns what lists show of alice's objects that use does not change.
func (u *users) aliceLists(t *testing.T) map[string]string {
	t.Helper()
	lists := map[string]string{}
	for _, path := range []string{"/snapshots", "/templates", "/webhooks", "/routes"} {
		lists[path] = string(u.send(t, u.alice.key.Secret, apiOperation{method: "GET"}, apiRequest{path: path}).body)
	}
	return lists
}

// testLists walks all lists: each has the caller's objects, and no id of another's.
func (u *users) testLists(t *testing.T) {
	seen := ""
	for _, o := range u.operations {
		if o.method != "GET" || strings.Contains(o.path, "{") {
			continue
		}
		all := apiRequest{path: o.path + "?limit=500"}
		got := string(u.send(t, u.bob.key.Secret, o, all).body)
		seen += got
		for _, id := range append([]string{u.alice.user.ID, u.alice.exec.ID, u.alice.delivery}, values(u.alice.ids)...) {
			if strings.Contains(got, id) && o.path != "/audit" {
				t.Errorf("GET %s as bob has %s", o.path, id)
			}
		}
		if o.path == "/audit" && strings.Contains(got, `"user_id":"`+u.alice.user.ID) { // the ids that bob has tried are in his own records
			t.Errorf("bob sees records of alice: %s", got)
		}
	}
	for collection, id := range u.bob.ids { // the control
		if !strings.Contains(seen, id) {
			t.Errorf("no list has bob's %s", collection)
		}
	}
	u.requireOwnEvents(t)
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// requireOwnEvents checks that a member's stream and webhook get no event of another.
func (u *users) requireOwnEvents(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), normalReply)
	defer cancel()
	opts := fromStart()
	for e, err := range u.bob.FollowEvents(ctx, &opts) {
		if err != nil {
			t.Fatalf("the stream ends before the last event: %v", err)
		}
		if e.VMID == u.alice.vm.ID {
			t.Errorf("bob gets %+v", e)
		}
		if e.Type == "vm.updated" && e.VMID == u.bob.vm.ID {
			break
		}
		if e.Type == "snapshot.created" {
			u.describe(t, u.alice)
			u.describe(t, u.bob) // which is the last event
		}
	}
	deliveries, err := u.bob.WebhookDeliveries(t.Context(), u.bob.ids["webhooks"], "")
	if err != nil || len(deliveries) == 0 {
		t.Errorf("%d deliveries, %v", len(deliveries), err)
	}
	of := map[string]bool{}
	for e, err := range u.alice.ListEvents(t.Context(), fromStart()) {
		if err != nil {
			t.Fatal(err)
		}
		of[e.ID] = true
	}
	for _, d := range deliveries {
		if of[d.EventID] {
			t.Errorf("bob's webhook gets alice's event %s", d.EventID)
		}
	}
}

// describe changes a member's VM.
func (u *users) describe(t *testing.T, m *member) {
	t.Helper()
	if _, err := m.UpdateVM(t.Context(), m.vm.ID, api.UpdateVM{Description: new("changed")}); err != nil {
		t.Error(err)
	}
}
