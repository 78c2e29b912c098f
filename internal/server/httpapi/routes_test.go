package httpapi_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
)

// TestRoutes calls every route of the document once; send checks each answer
// against the document.
func TestRoutes(t *testing.T) {
	s := newServer(t)
	cases := []struct {
		method, target, body string
		status               int
	}{
		{"POST", "/vms", `{"vcpu_count":2}`, 201},
		{"GET", "/vms", "", 200},
		{"GET", "/vms/" + knownVM, "", 200},
		{"PATCH", "/vms/" + knownVM, `{"name":"db"}`, 200},
		{"DELETE", "/vms/" + knownVM, "", 200},
		{"POST", "/vms/" + knownVM + "/start", "", 200},
		{"POST", "/vms/" + knownVM + "/stop", "", 200},
		{"POST", "/vms/" + knownVM + "/stop?timeout=0s", "", 200},
		{"POST", "/vms/" + knownVM + "/stop?timeout=-1s", "", 400},
		{"POST", "/vms/" + knownVM + "/stop?timeout=11m", "", 400},
		{"POST", "/vms/" + knownVM + "/stop?timeout=5", "", 400},
		{"POST", "/vms/" + knownVM + "/restart", "", 200},
		{"POST", "/vms/" + knownVM + "/pause", "", 200},
		{"POST", "/vms/" + knownVM + "/sleep", "", 200},
		{"POST", "/vms/" + knownVM + "/wake", "", 200},
		{"POST", "/vms/" + knownVM + "/resume", "", 200},
		{"POST", "/vms/" + knownVM + "/connect", `{"public_key":"` + someKey + `"}`, 200},
		{"POST", "/vms/" + knownVM + "/snapshot", "", 201},
		{"GET", "/vms/" + knownVM + "/snapshots", "", 200},
		{"POST", "/vms/" + knownVM + "/restore", "", 200},
		{"POST", "/vms/" + knownVM + "/fork", "", 201},
		{"POST", "/vms", `{"snapshot_id":"golden","count":2}`, 201},
		{"GET", "/snapshots", "", 200},
		{"GET", "/snapshots/golden", "", 200},
		{"DELETE", "/snapshots/snap_1", "", 200},
		{"GET", "/vms/" + knownVM + "/wait?for=ready", "", 200},
		{"GET", "/vms/" + knownVM + "/metrics", "", 200},
		{"GET", "/vms/" + knownVM + "/logs", "", 200},
		{"GET", "/vms/" + knownVM + "/console", "", 400},        // TestConsole opens it
		{"GET", "/vms/" + knownVM + "/tunnel?port=80", "", 400}, // no WebSocket
		{"GET", "/vms/" + knownVM + "/events", "", 200},
		{"POST", "/vms/" + knownVM + "/exec", `{"command":"cat","stdin_open":true,"background":true,"tty":{"rows":24,"cols":80}}`, 201},
		{"POST", "/vms/" + knownVM + "/exec", `{"command":["echo","a"]}`, 200},
		{"GET", "/vms/" + knownVM + "/exec", "", 400}, // TestStreamExec opens it
		{"GET", "/vms/" + knownVM + "/execs", "", 200},
		{"GET", firstExec, "", 200},
		{"GET", firstExec + "/attach", "", 400}, // TestAttachExec opens it
		{"GET", firstExec + "/logs", "", 200},
		{"POST", firstExec + "/signal", `{"signal":"WINCH"}`, 200},
		{"POST", firstExec + "/stdin", `{"data":"YQ==","encoding":"base64"}`, 200},
		{"POST", firstExec + "/resize", `{"rows":25,"cols":80}`, 200},
		{"DELETE", firstExec, "", 200},
		{"PUT", "/vms/" + knownVM + "/files?path=/tmp/f", "content", 200},
		{"GET", "/vms/" + knownVM + "/files?path=/tmp/f", "", 200},
		{"GET", "/vms/" + knownVM + "/files/list?path=/tmp", "", 200},
		{"GET", "/vms/" + knownVM + "/files/stat?path=/tmp/f", "", 200},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{"path":"/tmp/d"}`, 200},
		{"POST", "/vms/" + knownVM + "/files/rename", `{"from":"/tmp/d","to":"/tmp/e"}`, 200},
		{"GET", "/vms/" + knownVM + "/files/tar?path=/tmp", "", 200},
		{"PUT", "/vms/" + knownVM + "/files/tar?path=/tmp", emptyTar, 200},
		{"DELETE", "/vms/" + knownVM + "/files?path=/tmp/f", "", 200},
		{"GET", "/vms/" + knownVM + "/files/watch?path=/none", "", 404}, // TestWatchFiles watches
		{"GET", "/events", "", 200},
		{"POST", "/webhooks", `{"url":"https://example.com","events":["*"]}`, 201},
		{"GET", "/webhooks", "", 200},
		{"GET", "/webhooks/whk_1", "", 200},
		{"PATCH", "/templates/tpl_1", `{"name":"large"}`, 200},
		{"PATCH", "/webhooks/whk_1", `{"enabled":false}`, 200},
		{"DELETE", "/webhooks/whk_1", "", 200},
		{"POST", "/webhooks/whk_1/test", "", 202},
		{"GET", "/webhooks/whk_1/deliveries", "", 200},
		{"POST", "/webhooks/whk_1/deliveries/dlv_1/retry", "", 202},
		{"POST", "/vms/" + knownVM + "/routes", `{"target_port":8080}`, 201},
		{"GET", "/vms/" + knownVM + "/routes", "", 200},
		{"GET", "/routes", "", 200},
		{"GET", "/routes/rt_1", "", 200},
		{"PATCH", "/routes/rt_1", `{"target_port":81}`, 200},
		{"POST", "/routes/rt_1/verify", "", 200},
		{"DELETE", "/routes/rt_1", "", 200},
		{"POST", "/vms/" + knownVM + "/share", `{"port":3000}`, 200},
		{"DELETE", "/vms/" + knownVM + "/share", "", 200},
		{"POST", "/images", `{"kernel_path":"/k","rootfs_path":"/r"}`, 201},
		{"GET", "/images", "", 200},
		{"GET", "/images/img_default", "", 200},
		{"DELETE", "/images/img_default", "", 200},
		{"POST", "/images/img_default/warm", "", 202},
		{"POST", "/images/builds", "", 202},
		{"GET", "/images/builds/bld_1", "", 200},
		{"GET", "/images/builds/bld_1/log", "", 200},
		{"POST", "/templates", `{"name":"small"}`, 201},
		{"GET", "/templates", "", 200},
		{"GET", "/templates/tpl_1", "", 200},
		{"DELETE", "/templates/tpl_1", "", 200},
		{"POST", "/keys", `{"name":"ci"}`, 201},
		{"GET", "/keys", "", 200},
		{"DELETE", "/keys/key_good", "", 200},
		{"POST", "/users", `{"name":"alice"}`, 201},
		{"GET", "/users", "", 200},
		{"GET", "/users/usr_1", "", 200},
		{"PATCH", "/users/usr_1", `{"disabled":true}`, 200},
		{"DELETE", "/users/usr_1", "", 409},
		{"DELETE", "/users/usr_1?cascade=true", "", 200},
		{"GET", "/me", "", 200},
		{"PATCH", "/images/img_default", `{"visibility":"shared","shared_with":["alice"]}`, 200},
		{"GET", "/me/usage", "", 200},
		{"GET", "/audit", "", 200},
		{"GET", "/users/acc_good/usage", "", 200},
		{"GET", "/users/acc_good/quota", "", 200},
		{"PUT", "/users/acc_good/quota", `{"vms":3}`, 200},
		{"GET", "/e2b", "", 501}, // it is off
		{"GET", "/healthz", "", 200},
	}
	called := map[string]bool{}
	for _, c := range cases {
		r := s.request(t, c.method, c.target, c.body)
		_, pattern := s.contract.routes.Handler(r)
		called[pattern] = true
		reply := s.send(t, r)
		if reply.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d: %s", c.method, c.target, reply.StatusCode, c.status, reply.body)
		}
		if c.status == 201 && reply.Header.Get("Location") == "" {
			t.Errorf("%s %s: no Location", c.method, c.target)
		}
	}
	for _, pattern := range documented(s) {
		if !called[pattern] {
			t.Errorf("%s is in the document, but not in this test", pattern)
		}
	}
}

// documented returns "METHOD /path" of every route in the document.
func documented(s *server) []string {
	var patterns []string
	for path, item := range s.contract.paths {
		for method := range item.(object) {
			patterns = append(patterns, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(patterns)
	return patterns
}

func TestUnknownIDs(t *testing.T) {
	s := newServer(t)
	for _, pattern := range documented(s) {
		method, path, _ := strings.Cut(pattern, " ")
		if !strings.Contains(path, "{id}") {
			continue
		}
		target := strings.ReplaceAll(path, "{id}", "nothing")
		body := ""
		switch {
		case method == "PATCH" || method == "PUT" && strings.HasSuffix(path, "/quota"):
			body = "{}"
		case strings.HasSuffix(path, "/wait"):
			target += "?for=running"
		case strings.HasSuffix(path, "/tunnel"):
			target += "?port=80"
		case path == "/vms/{id}/exec" && method == "POST":
			body = `{"command":"true"}`
		case strings.HasSuffix(path, "/connect"):
			body = `{"public_key":"` + someKey + `"}`
		case path == "/vms/{id}/routes" && method == "POST":
			body = `{"target_port":80}`
		case strings.HasSuffix(path, "/share") && method == "POST":
			body = `{"port":80}`
		case strings.HasSuffix(path, "/signal"):
			body = `{"signal":"TERM"}`
		case strings.HasSuffix(path, "/stdin"):
			body = `{}`
		case strings.HasSuffix(path, "/resize"):
			body = `{"rows":1,"cols":1}`
		case strings.HasSuffix(path, "/mkdir"):
			body = `{"path":"/tmp/d"}`
		case strings.HasSuffix(path, "/rename"):
			body = `{"from":"/tmp/d","to":"/tmp/e"}`
		case strings.Contains(path, "/files"):
			target += "?path=/tmp"
		}
		if reply := s.call(t, method, target, body); reply.StatusCode != 404 {
			t.Errorf("%s: status %d: %s", pattern, reply.StatusCode, reply.body)
		}
	}
}

// TestOtherOwner asks for the good owner's VM with another owner's key.
func TestOtherOwner(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/vms/" + knownVM, "/vms/" + knownVM + "/logs", "/images/img_default", "/templates/tpl_1", "/snapshots/golden", "/vms/" + knownVM + "/snapshots"} {
		r := s.request(t, "GET", path, "")
		r.Header.Set("Authorization", "Bearer "+otherKey)
		wantStatus(t, s.send(t, r), 404)
	}
}

func TestAuthentication(t *testing.T) {
	s := newServer(t)
	readable := []string{"GET /docs", "GET /openapi.json", "GET /openapi.yaml"}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+goodKey))
	credentials := []struct {
		name, header, value string
		admits              func(pattern string) bool
	}{
		{"nothing", "X-Nothing", "", func(string) bool { return false }},
		{"a wrong key", "Authorization", "Bearer hk_wrong", func(string) bool { return false }},
		{"an empty key", "Authorization", "Bearer ", func(string) bool { return false }},
		{"a wrong scheme", "Authorization", "Digest " + goodKey, func(string) bool { return false }},
		{"a wrong X-API-Key", "X-API-Key", "hk_wrong", func(string) bool { return false }},
		{"basic", "Authorization", basic, func(p string) bool { return slices.Contains(readable, p) }},
		{"bearer", "Authorization", "bearer " + goodKey, func(string) bool { return true }},
		{"X-API-Key", "X-API-Key", goodKey, func(string) bool { return true }},
	}
	patterns := append(documented(s), readable...)
	patterns = append(patterns, "GET /nothing", "POST /docs")
	for _, pattern := range patterns {
		for _, c := range credentials {
			method, path, _ := strings.Cut(pattern, " ")
			r := s.request(t, method, strings.ReplaceAll(path, "{id}", "nothing"), "")
			r.Header.Del("Authorization")
			r.Header.Set(c.header, c.value)
			reply := s.send(t, r)
			admitted := reply.StatusCode != http.StatusUnauthorized
			if want := path == "/healthz" || c.admits(pattern) || (path == "/docs" && c.name == "basic"); admitted != want {
				t.Errorf("%s with %s: status %d", pattern, c.name, reply.StatusCode)
			}
			if !admitted && reply.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %s: no WWW-Authenticate", pattern, c.name)
			}
		}
	}
}

// TestRights calls every route with a key that may only read.
func TestRights(t *testing.T) {
	s := newServer(t)
	writingGets := []string{"GET /vms/{id}/console", "GET /vms/{id}/tunnel", "GET /vms/{id}/exec", "GET /vms/{id}/execs/{exec_id}/attach"} // they pass input on
	for _, pattern := range append(documented(s), "GET /docs", "GET /openapi.json", "GET /openapi.yaml") {
		method, path, _ := strings.Cut(pattern, " ")
		r := s.request(t, method, strings.NewReplacer("{id}", knownVM, "{exec_id}", "exec_1").Replace(path), "")
		r.Header.Set("Authorization", "Bearer "+readerKey)
		reply := s.send(t, r)
		refused := reply.StatusCode == http.StatusForbidden
		if want := method != "GET" || slices.Contains(writingGets, pattern) || strings.HasSuffix(path, "/quota") || path == "/users/{id}/usage"; refused != want {
			t.Errorf("%s: status %d: %s", pattern, reply.StatusCode, reply.body)
		}
		if refused && (reply.problem(t).Code != "forbidden" || reply.problem(t).Hint == "") {
			t.Errorf("%s: %s", pattern, reply.body)
		}
	}
	if slices.Contains(s.vms.asked, "delete") {
		t.Errorf("a reader had hatchd do %v", s.vms.asked)
	}
}

// A key that may create VMs does with them nothing that other rights are for.
func TestRightsOfFields(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct{ path, body, lacks string }{
		{"/vms", `{"snapshot_id":"golden"}`, "snapshots:read"},
		{"/vms/" + knownVM + "/restore", "", "snapshots:read"},
		{"/vms/" + knownVM + "/fork", `{"user_data":"#!/bin/sh"}`, "exec:write"},
		{"/vms/" + knownVM + "/fork", `{"ssh_authorized_keys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"]}`, "exec:write"},
		{"/vms/" + knownVM + "/fork", `{"labels":{"a":"b"}}`, ""},
		{"/vms", `{"ssh_authorized_keys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"]}`, ""},
		{"/templates", `{"name":"web","routes":[{"target_port":80}]}`, "routes:write"},
		{"/templates", `{"name":"web","routes":[]}`, ""},
	} {
		r := s.request(t, "POST", c.path, c.body)
		r.Header.Set("Authorization", "Bearer "+creatorKey)
		reply := s.send(t, r)
		if c.lacks == "" {
			wantStatus(t, reply, 201)
			continue
		}
		if wantStatus(t, reply, 403); !strings.Contains(string(reply.body), c.lacks) {
			t.Errorf("%s %s: %s", c.path, c.body, reply.body)
		}
	}
}

// TestBasicOnlyWhereRead keeps browsers from asking for a password on routes
// that change anything.
func TestBasicOnlyWhereRead(t *testing.T) {
	s := newServer(t)
	for path, want := range map[string]bool{"/docs": true, "/openapi.yaml": true, "/vms": false} {
		r := s.request(t, "GET", path, "")
		r.Header.Del("Authorization")
		offered := strings.Contains(strings.Join(s.send(t, r).Header.Values("WWW-Authenticate"), ","), "Basic")
		if offered != want {
			t.Errorf("%s offers Basic: %v", path, offered)
		}
	}
}

func TestUnknownRoutes(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "GET", "/nothing", ""), 404)
	wantStatus(t, s.call(t, "GET", "/vms/x/y/z", ""), 404)
	reply := s.call(t, "PUT", "/vms", `{}`)
	wantStatus(t, reply, 405)
	if got := reply.Header.Get("Allow"); got != "GET, HEAD, POST" {
		t.Errorf("Allow is %q", got)
	}
	if got := s.call(t, "PUT", "/vms/"+knownVM, "").Header.Get("Allow"); got != "GET, HEAD, PATCH, DELETE" {
		t.Errorf("Allow is %q", got)
	}
	if got := s.call(t, "PUT", "/images/builds", "").Header.Get("Allow"); got != "POST" { // not those of /images/{id}
		t.Errorf("Allow is %q", got)
	}
	if got := s.call(t, "DELETE", "/vms/"+knownVM+"/start", "").Header.Get("Allow"); got != "POST" {
		t.Errorf("Allow is %q", got)
	}
}

func TestHealthDegraded(t *testing.T) {
	s := newServer(t)
	s.health.status = "degraded"
	r := s.request(t, "GET", "/healthz", "")
	r.Header.Del("Authorization")
	reply := s.send(t, r)
	wantStatus(t, reply, 503)
	if !strings.Contains(string(reply.body), "the disk is full") {
		t.Errorf("does not say which part: %s", reply.body)
	}
}

func TestDocs(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "GET", "/docs", "")
	wantStatus(t, reply, 200)
	page := string(reply.body)
	for _, want := range []string{"Create VM", "guest_mac", `id="schema-Problem"`, "wait_timeout", "/images/builds/{id}/log", "one of starting, running"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	for _, bad := range []string{"<script", "src=", "//cdn", "@import", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if csp := reply.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
		t.Errorf("Content-Security-Policy is %q", csp)
	}
}

func TestOpenAPI(t *testing.T) {
	s := newServer(t)
	var doc struct {
		OpenAPI    string
		Info       struct{ Version string }
		Paths      map[string]map[string]struct{ Security []map[string]any }
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(s.call(t, "GET", "/openapi.json", "").body, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Version != "1.2.3" {
		t.Errorf("OpenAPI %s of version %s", doc.OpenAPI, doc.Info.Version)
	}
	if len(doc.Paths["/healthz"]["get"].Security) != 1 || len(doc.Paths["/vms"]["get"].Security) != 0 {
		t.Error("only /healthz should be free of the document's security")
	}
	if _, found := doc.Components.Schemas["ErrorModel"]; found {
		t.Error("the document shows an error that is not ours")
	}
	yaml := s.call(t, "GET", "/openapi.yaml", "")
	if !strings.Contains(string(yaml.body), "openapi: 3.1") {
		t.Errorf("YAML begins with %.80s", yaml.body)
	}
}

// A key can be given a scope of each noun that operations need, and of no other.
func TestEachNounOfScopesIsNeeded(t *testing.T) {
	s := newServer(t)
	needed, offered := map[string]bool{}, map[string]bool{}
	for _, pattern := range documented(s) {
		method, path, _ := strings.Cut(pattern, " ")
		scope := s.contract.paths[path].(object)[strings.ToLower(method)].(object)["x-required-scope"].(string)
		if noun, _, isRight := strings.Cut(scope, ":"); isRight {
			needed[noun] = true
		}
	}
	for _, right := range access.EveryRight() {
		if right != access.Admin {
			offered[string(right.Noun)] = true
		}
	}
	if !maps.Equal(needed, offered) {
		t.Errorf("keys can have %v, operations need %v", slices.Sorted(maps.Keys(offered)), slices.Sorted(maps.Keys(needed)))
	}
}
