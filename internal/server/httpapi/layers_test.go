package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/vm"
)

func TestBodyLimit(t *testing.T) {
	s := newServer(t)
	fits := `{"user_data":"` + strings.Repeat("a", 2<<20-20) + `"}`
	wantStatus(t, s.call(t, "POST", "/vms", fits), 201)
	for name, body := range map[string]io.Reader{
		"with a length":    strings.NewReader(fits + strings.Repeat(" ", 100)),
		"without a length": io.MultiReader(strings.NewReader(fits), strings.NewReader(strings.Repeat(" ", 100))),
	} {
		r := s.request(t, "POST", "/vms", "{}")
		r.Body, r.ContentLength = io.NopCloser(body), -1
		reply := s.send(t, r)
		if reply.StatusCode != 413 || !strings.Contains(reply.problem(t).Error, "2097152 bytes") {
			t.Errorf("%s: status %d: %.300s", name, reply.StatusCode, reply.body)
		}
	}
}

func TestContentType(t *testing.T) {
	s := newServer(t)
	for kind, status := range map[string]int{
		"application/json": 201, "application/json; charset=utf-8": 201, "Application/JSON": 201,
		"": 415, "text/plain": 415, "application/x-www-form-urlencoded": 415, "application/cbor": 415, ";": 415,
	} {
		r := s.request(t, "POST", "/vms", "{}")
		r.Header.Set("Content-Type", kind)
		if reply := s.send(t, r); reply.StatusCode != status {
			t.Errorf("%q: status %d: %s", kind, reply.StatusCode, reply.body)
		}
	}
	r := s.request(t, "POST", "/vms", "")
	r.Header.Set("Content-Type", "text/plain") // of nothing
	wantStatus(t, s.send(t, r), 201)
}

// TestAccept requests types that the server does not have; it returns JSON.
func TestAccept(t *testing.T) {
	s := newServer(t)
	for _, accept := range []string{"text/html", "application/cbor", "*/*", "application/json;q=0.1"} {
		for target, status := range map[string]int{"/vms/" + knownVM: 200, "/vms/nothing": 404, "/vms?limit=0": 400} {
			r := s.request(t, "GET", target, "")
			r.Header.Set("Accept", accept)
			wantStatus(t, s.send(t, r), status)
		}
	}
}

func TestRequestID(t *testing.T) {
	s := newServer(t)
	for given, kept := range map[string]bool{
		"abc-123_x.y": true, "": false, "a b": false, "a\"b": false, strings.Repeat("a", 65): false,
	} {
		r := s.request(t, "GET", "/vms/nothing", "")
		r.Header.Set("X-Request-Id", given)
		reply := s.send(t, r)
		id := reply.Header.Get("X-Request-Id")
		if (id == given) != kept || id == "" || reply.problem(t).RequestID != id {
			t.Errorf("%q becomes %q", given, id)
		}
	}
}

// TestAccessLog sends secrets everywhere, and looks for them in the log.
func TestAccessLog(t *testing.T) {
	s := newServer(t)
	r := s.request(t, "POST", "/vms?wait=ready&S3CRET=S3CRET", `{"user_data":"S3CRET"}`)
	r.Header.Set("X-Request-Id", "req-1")
	r.Header.Set("X-Other", "S3CRET")
	s.send(t, r)
	s.call(t, "GET", "/vms/S3CRET", "")
	r = s.request(t, "GET", "/S3CRET", "")
	r.Header.Set("Authorization", "Bearer S3CRET")
	s.send(t, r)
	if log := s.log.String(); strings.Contains(log, "S3CRET") || strings.Contains(log, goodKey) {
		t.Errorf("the log has a secret: %s", log)
	}
	line := logLine(t, s, "req-1")
	if line["method"] != "POST" || line["route"] != "POST /vms" || line["status"] != 400.0 || line["key"] != "key_good" || line["ms"] == nil {
		t.Errorf("the log says %v", line)
	}
}

// logLine returns the log's line about one request.
func logLine(t *testing.T, s *server, id string) map[string]any {
	t.Helper()
	for line := range bytes.Lines([]byte(s.log.String())) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatal(err)
		}
		if fields["request_id"] == id && fields["msg"] == "request" {
			return fields
		}
	}
	t.Fatalf("no line about %s", id)
	return nil
}

func TestPanic(t *testing.T) {
	s := newServer(t)
	s.vms.create = func(context.Context) (vm.VM, error) { panic("at /var/lib/secret") }
	reply := s.call(t, "POST", "/vms", "")
	wantStatus(t, reply, 500)
	if strings.Contains(string(reply.body), "secret") || reply.problem(t).RequestID == "" {
		t.Errorf("answers %s", reply.body)
	}
	if log := s.log.String(); !strings.Contains(log, "at /var/lib/secret") || !strings.Contains(log, "TestPanic") {
		t.Errorf("the log does not report the panic: %s", log)
	}
	s.vms.log = func(_ context.Context, _ int, _ bool, w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("line\n", 10_000))
		panic("late")
	}
	resp, err := http.DefaultClient.Do(s.request(t, "GET", "/vms/"+knownVM+"/logs", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("half an answer looks like a whole one")
	}
}

// TestBrokenAuthenticator expects that the caller does not learn the cause.
func TestBrokenAuthenticator(t *testing.T) {
	s := newServer(t)
	r := s.request(t, "GET", "/vms", "")
	r.Header.Set("Authorization", "Bearer hk_broken")
	reply := s.send(t, r)
	wantStatus(t, reply, 500)
	if strings.Contains(string(reply.body), "hatch.db") {
		t.Errorf("answers %s", reply.body)
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	s := newServer(t)
	for _, target := range []string{"/vms", "/vms/nothing", "/nothing", "/healthz", "/docs"} {
		h := s.call(t, "GET", target, "").Header
		if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Request-Id") == "" || h.Get("Set-Cookie") != "" {
			t.Errorf("%s: %v", target, h)
		}
	}
}

func TestOtherNouns(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/images", `{"id":"img_a","name":"n","kernel_path":"/k","rootfs_path":"/r","modules_path":"/m","boot_args":"q"}`), 201)
	if r := s.images.registered; r.ID != "img_a" || r.Name != "n" || r.KernelPath != "/k" || r.RootfsPath != "/r" || r.ModulesPath != "/m" || r.BootArgs != "q" {
		t.Errorf("registered %+v", r)
	}
	wantStatus(t, s.call(t, "POST", "/images/builds", `{"recipe":"minimal","force":true}`), 202)
	if s.images.recipe != "minimal" || !s.images.force {
		t.Errorf("builds %q, force %v", s.images.recipe, s.images.force)
	}
	wantStatus(t, s.call(t, "POST", "/images/builds", ""), 202)
	if s.images.recipe != "debian" || s.images.force {
		t.Errorf("builds %q, force %v", s.images.recipe, s.images.force)
	}
	wantStatus(t, s.call(t, "POST", "/templates", `{"name":"small","mem_mib":256,"enable_network":false,"labels":{"a":"b"},"ssh_authorized_keys":["k"]}`), 201)
	if m := s.templates.made; m.Name != "small" || *m.MemMiB != 256 || *m.EnableNetwork || m.Labels["a"] != "b" || m.SSHKeys[0] != "k" || m.VCPUs != nil {
		t.Errorf("made %+v", m)
	}
	for target, hidden := range map[string]string{"/images": "/k/", "/templates": "hidden", "/keys": "secret"} {
		if body := string(s.call(t, "GET", target, "").body); strings.Contains(body, hidden) {
			t.Errorf("%s shows %s", target, body)
		}
	}
	for target, shown := range map[string]string{"/images/img_default": "/k/vmlinuz", "/templates/tpl_1": "hidden"} {
		if body := string(s.call(t, "GET", target, "").body); !strings.Contains(body, shown) {
			t.Errorf("%s does not show %s: %s", target, shown, body)
		}
	}
	if body := string(s.call(t, "POST", "/keys", `{"name":"ci"}`).body); !strings.Contains(body, `"secret":"hk_new"`) || strings.Contains(body, "hash") {
		t.Errorf("a new key is shown as %s", body)
	}
	for target, c := range map[string]struct{ body, field string }{
		"/images":        {`{"kernel_path":"/k"}`, "rootfs_path"},
		"/images/builds": {`{"recipe":"gentoo"}`, "recipe"},
		"/templates":     {``, "name"},
		"/keys":          {`{"name":""}`, "name"},
	} {
		reply := s.call(t, "POST", target, c.body)
		wantStatus(t, reply, 400)
		if p := reply.problem(t); p.Field != c.field && c.body != "" {
			t.Errorf("%s: %s", target, reply.body)
		}
	}
}
