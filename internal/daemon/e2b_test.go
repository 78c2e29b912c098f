package daemon_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// e2bKey has the form that decides whom a request at the host name of the API is for.
func (w *world) e2bKey(t *testing.T) string {
	t.Helper()
	k, err := w.CreateKey(t.Context(), api.CreateKey{Name: "e2b", E2B: true})
	ok(t, err)
	if len(k.Secret) != 44 || strings.Trim(strings.TrimPrefix(k.Secret, "e2b_"), "0123456789abcdef") != "" || k.Prefix != k.Secret[:12] {
		t.Errorf("the key has the prefix %q, and %d characters", k.Prefix, len(k.Secret))
	}
	return k.Secret
}

// asked is a request of an E2B client.
type asked struct {
	client               *http.Client
	method, url, body    string
	key, sandbox, access string
}

func (a asked) send(t *testing.T) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), a.method, a.url, strings.NewReader(a.body))
	ok(t, err)
	for name, value := range map[string]string{"X-API-Key": a.key, "E2b-Sandbox-Id": a.sandbox, "X-Access-Token": a.access} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	reply, err := a.client.Do(r)
	ok(t, err)
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	ok(t, err)
	return reply.StatusCode, string(text)
}

// mustSend returns the fields of an answer with this status.
func (a asked) mustSend(t *testing.T, want int) (fields map[string]any) {
	t.Helper()
	status, text := a.send(t)
	if status != want {
		t.Fatalf("%s %s: %d %s", a.method, a.url, status, text)
	}
	if strings.HasPrefix(text, "{") {
		ok(t, json.Unmarshal([]byte(text), &fields))
	}
	return fields
}

// TestE2B makes a sandbox, works in it, lets it sleep over a restart, and kills it.
func TestE2B(t *testing.T) {
	w := &world{dir: t.TempDir(), settings: []string{"HATCH_E2B_ADDR=127.0.0.1:0"}}
	w.start(t)
	secret := w.e2bKey(t)
	at := func() string {
		door, err := w.E2B(t.Context())
		ok(t, err)
		return "http://" + door.Addr
	}
	made := asked{plain, "POST", at() + "/v2/sandboxes", `{"templateID":"base"}`, secret, "", ""}.mustSend(t, 201)
	id, token := made["sandboxID"].(string), made["envdAccessToken"].(string)
	v, err := w.GetVM(t.Context(), "vm_"+id[1:])
	ok(t, err)
	if v.Labels["e2b"] != "true" || v.TTLSeconds == nil || *v.TTLSeconds != 300 || v.ExpireAction != "delete" {
		t.Errorf("the VM is %+v", v)
	}
	asked{plain, "GET", at() + "/health", "", "", id, ""}.mustSend(t, 204)
	asked{plain, "GET", at() + "/envs", "", "", id, "wrong"}.mustSend(t, 401)
	asked{plain, "GET", at() + "/envs", "", "", id, token}.mustSend(t, 200)
	asked{plain, "POST", at() + "/sandboxes/" + id + "/pause", "", secret, "", ""}.mustSend(t, 204)
	asked{plain, "GET", at() + "/health", "", "", id, token}.mustSend(t, 502)

	ok(t, w.end())
	w.start(t)
	defer func() { _ = w.end() }()
	if got := (asked{plain, "GET", at() + "/sandboxes/" + id, "", secret, "", ""}).mustSend(t, 200); got["state"] != "paused" {
		t.Errorf("after a restart it is %v", got)
	}
	again := asked{plain, "POST", at() + "/v2/sandboxes/" + id + "/connect", "{}", secret, "", ""}.mustSend(t, 201)
	if again["envdAccessToken"] != token {
		t.Error("it has another token after a restart")
	}
	asked{plain, "GET", at() + "/envs", "", "", id, token}.mustSend(t, 200)
	asked{plain, "DELETE", at() + "/sandboxes/" + id, "", secret, "", ""}.mustSend(t, 204)
	asked{plain, "GET", at() + "/health", "", "", id, token}.mustSend(t, 502)
	records := 0
	for r, err := range w.ListAudit(t.Context(), client.AuditOptions{Operation: "POST /v2/sandboxes"}) {
		ok(t, err)
		if records++; r.Outcome != "ok" || r.KeyName != "e2b" {
			t.Errorf("recorded %+v", r)
		}
	}
	if records != 1 {
		t.Errorf("%d records", records)
	}
}

// TestE2BOverTLS has the names of both APIs, of sandboxes and of routes on one port.
func TestE2BOverTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, roots := certificate(t, dir, "*.localhost")
	w := &world{dir: t.TempDir(), settings: []string{"HATCH_E2B_ADDR=127.0.0.1:0", "HATCH_TLS_ADDR=127.0.0.1:0", "HATCH_TLS_CERT=" + certFile, "HATCH_TLS_KEY=" + keyFile}}
	w.start(t)
	defer func() { _ = w.end() }()
	door, err := w.E2B(t.Context())
	ok(t, err)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
	}}
	defer transport.CloseIdleConnections()
	secure, secret := &http.Client{Transport: transport}, w.e2bKey(t)

	made := asked{secure, "POST", door.URL + "/v2/sandboxes", `{"templateID":"base"}`, secret, "", ""}.mustSend(t, 201)
	id, token := made["sandboxID"].(string), made["envdAccessToken"].(string)
	if made["domain"] != door.Domain {
		t.Errorf("the domain is %v, want %s", made["domain"], door.Domain)
	}
	asked{secure, "GET", "https://49983-" + id + "." + door.Domain + "/envs", "", "", "", token}.mustSend(t, 200)
	asked{secure, "GET", "https://49983-i999999999999." + door.Domain + "/health", "", "", "", ""}.mustSend(t, 502)
	for _, c := range []struct{ key, has string }{{secret, `"templateID"`}, {key, "[]"}} {
		if status, text := (asked{secure, "GET", door.URL + "/templates", "", c.key, "", ""}).send(t); status != 200 || !strings.Contains(text, c.has) {
			t.Errorf("the templates are %d %s", status, text)
		}
	}
	asked{secure, "GET", door.URL + "/vms/vm_" + id[1:], "", secret, "", ""}.mustSend(t, 200)
	asked{secure, "GET", "https://web." + door.Domain + "/", "", "", "", ""}.mustSend(t, 404)
}

func TestE2BIsOff(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	defer func() { _ = w.end() }()
	_, err := w.E2B(t.Context())
	refusedAs(t, err, "e2b_off")
}
