package envd_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/server/envd"
)

func TestDownload(t *testing.T) {
	w := newWorld(t)
	text := strings.Repeat("0123456789", 10_000)
	w.put(t, "home/user/a b.txt", text)
	w.put(t, "home/user/empty", "")
	w.put(t, "home/user/page.bin", "\x1f\x8b\x00\xff<html>")
	get := func(query string, headers ...string) reply {
		return w.send(t, http.MethodGet, "/files?"+query, "", headers...)
	}
	for query, want := range map[string]string{
		"path=a+b.txt": text, "path=~/a%20b.txt": text, "path=/home/user/a+b.txt&username=user": text,
		"path=page.bin": "\x1f\x8b\x00\xff<html>", "path=../user/empty": "", "path=/etc/passwd&username=root": passwd,
	} {
		r := get(query, "Accept-Encoding", "gzip, deflate")
		if r.StatusCode != 200 || r.body != want || r.Header.Get("Content-Encoding") != "" || r.ContentLength != int64(len(want)) {
			t.Errorf("%s: status %d, %d bytes of %d", query, r.StatusCode, len(r.body), len(want))
		}
	}
	r := get("path=a+b.txt")
	if h := r.Header; h.Get("Content-Disposition") != `inline; filename="a b.txt"` || h.Get("Last-Modified") == "" || h.Get("Vary") != "Accept-Encoding" || !strings.HasPrefix(h.Get("Content-Type"), "text/plain") {
		t.Errorf("the headers are %v", h)
	}
	modified := r.Header.Get("Last-Modified")
	for header, want := range map[string]string{
		"Range: bytes=3-6": "206 3456", "Range: bytes=-2": "206 89", "Range: bytes=99998-": "206 89", "Range: bytes=50000-50003": "206 0123",
		"Range: bytes=100000-": "416 invalid range: failed to overlap\n", "If-Modified-Since: " + modified: "304 ", "If-Unmodified-Since: " + modified: "200 " + text,
	} {
		name, value, _ := strings.Cut(header, ": ")
		if r := get("path=a+b.txt", name, value); fmt.Sprintf("%d %s", r.StatusCode, r.body) != want {
			t.Errorf("%s: status %d, %.40q", header, r.StatusCode, r.body)
		}
	}
	if r := w.send(t, http.MethodHead, "/files?path=empty", ""); r.StatusCode != 200 || r.Header.Get("Content-Length") != "0" {
		t.Errorf("HEAD: status %d, %v", r.StatusCode, r.Header)
	}
	for query, status := range map[string]int{"path=missing": 404, "path=/etc": 400, "": 400, "path=/etc/passwd&username=no-one": 401, "path=%00": 400} {
		if r := get(query); r.StatusCode != status || !strings.HasPrefix(r.body, fmt.Sprintf(`{"code":%d,"message":"`, status)) {
			t.Errorf("%q: status %d, %s", query, r.StatusCode, r.body)
		}
	}
}

// form returns a form as browsers and SDKs send it: the names of files are paths.
func form(files ...string) string {
	var b strings.Builder
	for i := 0; i < len(files); i += 2 {
		fmt.Fprintf(&b, "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n", files[i], files[i+1])
	}
	return b.String() + "--B--\r\n"
}

const multipart = "multipart/form-data; boundary=B"

func TestUpload(t *testing.T) {
	w := newWorld(t)
	post := func(query, body string, headers ...string) reply {
		return w.send(t, http.MethodPost, "/files"+query, body, append([]string{"Content-Type", multipart}, headers...)...)
	}
	octets := []string{"Content-Type", "application/octet-stream"}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte("unzipped"))
	_ = z.Close()
	for _, c := range []struct {
		got   reply
		want  string
		files map[string]string
	}{
		{
			post("", form("w1.txt", "one", "/tmp/d x/w%222.txt", "two\x00\r\n", "ä/b.txt", "")),
			`[{"name":"w1.txt","path":"/home/user/w1.txt","type":"file"},{"name":"w\"2.txt","path":"/tmp/d x/w\"2.txt","type":"file"},{"name":"b.txt","path":"/home/user/ä/b.txt","type":"file"}]`,
			map[string]string{"home/user/w1.txt": "one", `tmp/d x/w"2.txt`: "two\x00\r\n", "home/user/ä/b.txt": ""},
		},
		{post("?path=~/deep/x.bin", form("ignored", "new")), `[{"name":"x.bin","path":"/home/user/deep/x.bin","type":"file"}]`, map[string]string{"home/user/deep/x.bin": "new"}},
		{post("?path=x&username=root", "raw\xff", octets...), `[{"name":"x","path":"/root/x","type":"file"}]`, map[string]string{"root/x": "raw\xff"}},
		{post("?path=z", zipped.String(), append(octets, "Content-Encoding", "gzip")...), `[{"name":"z","path":"/home/user/z","type":"file"}]`, map[string]string{"home/user/z": "unzipped"}},
		{post("?path=none", "", octets...), `[{"name":"none","path":"/home/user/none","type":"file"}]`, map[string]string{"home/user/none": ""}},
		{post("", form()), `[]`, nil},
	} {
		c.got.want(t, 200, c.want)
		for name, want := range c.files {
			if text, err := os.ReadFile(filepath.Join(w.root, name)); string(text) != want {
				t.Errorf("%s: %q, %v", name, text, err)
			}
		}
	}
}

func TestRefusedUploads(t *testing.T) {
	w := newWorld(t)
	w.put(t, "home/user/old", "old")
	for name, c := range map[string]struct {
		query, body string
		headers     []string
		status      int
	}{
		"a directory":     {"?path=/etc", form("x", "y"), nil, 400},
		"the root":        {"?path=/", form("x", "y"), nil, 400},
		"one path twice":  {"", form("x", "y", "./x", "z"), nil, 400},
		"one path for 2":  {"?path=x", form("x", "y", "z", "z"), nil, 400},
		"no name":         {"", form("", "y"), nil, 400},
		"a cut form":      {"?path=old", form("x", "yyyy")[:90], nil, 400},
		"a cut file":      {"?path=old", form("x", "yyyy")[:112], nil, 400},
		"no boundary":     {"?path=x", "x", []string{"Content-Type", "multipart/form-data"}, 400},
		"no type":         {"?path=x", "x", []string{"Content-Type", "text/plain"}, 400},
		"no path":         {"", "x", []string{"Content-Type", "application/octet-stream"}, 400},
		"no gzip":         {"?path=old", "x", []string{"Content-Type", "application/octet-stream", "Content-Encoding", "gzip"}, 400},
		"a cut gzip":      {"?path=old", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", []string{"Content-Type", "application/octet-stream", "Content-Encoding", "gzip"}, 400},
		"an odd encoding": {"?path=old", "x", []string{"Content-Type", "application/octet-stream", "Content-Encoding", "br"}, 400},
		"metadata":        {"?path=x", form("x", "y"), []string{"X-Metadata-A", "b"}, 400},
		"an unknown user": {"?path=x&username=no-one", form("x", "y"), nil, 401},
	} {
		r := w.send(t, http.MethodPost, "/files"+c.query, c.body, append([]string{"Content-Type", multipart}, c.headers...)...)
		if r.StatusCode != c.status || !strings.HasPrefix(r.body, fmt.Sprintf(`{"code":%d,"message":"`, c.status)) {
			t.Errorf("%s: status %d, %s", name, r.StatusCode, r.body)
		}
	}
	if text, err := os.ReadFile(filepath.Join(w.root, "home/user/old")); string(text) != "old" {
		t.Errorf("the old file is %q, %v", text, err)
	}
	if r := w.send(t, http.MethodPut, "/files?path=x", ""); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: status %d", r.StatusCode)
	}
}

// TestSignatureVectors has the signatures of a published client.
func TestSignatureVectors(t *testing.T) {
	for _, c := range []struct{ path, op, user, expiration, want string }{
		{"/home/user/a.txt", "read", "", "", "v1_5sH+liCb6+qch2/z6m1m6ixeUzoITT/5NMEVKzFW1ZI"},
		{"a b.txt", "write", "root", "", "v1_0FpBL1KcC9lOUO4qFdBc57UTCT6QrcrUK9TbFHq30+0"},
		{"/home/user/a.txt", "read", "", "1800000060", "v1_7ZSM1ss9Bvf7qbJ73ghOrElvud4QfcYBCcVmvzj0RWI"},
	} {
		if got := envd.Signature(c.path, c.op, c.user, token, c.expiration); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestAccess has requests without the token.
func TestAccess(t *testing.T) {
	w := newWorld(t)
	w.put(t, "home/user/a.txt", "a")
	none := []string{"X-Access-Token", ""}
	signed := func(path, op, user string, expiration ...string) string {
		q := url.Values{"path": {path}}
		if user != "" {
			q.Set("username", user)
		}
		last := ""
		if len(expiration) > 0 {
			last = expiration[0]
			q.Set("signature_expiration", last)
		}
		q.Set("signature", envd.Signature(path, op, user, token, last))
		return "/files?" + q.Encode()
	}
	later, before := fmt.Sprint(time.Now().Add(time.Hour).Unix()), fmt.Sprint(time.Now().Add(-time.Hour).Unix())
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", signed("a.txt", "read", ""), 200},
		{"GET", signed("a.txt", "read", "user", later), 200},
		{"GET", signed("a.txt", "read", "", before), 401},
		{"GET", signed("a.txt", "read", "", "0"), 401},
		{"GET", signed("a.txt", "read", "", "x"), 401},
		{"GET", signed("a.txt", "write", ""), 401},
		{"GET", signed("a.txt", "read", "") + "&username=root", 401},
		{"GET", strings.Replace(signed("a.txt", "read", ""), "a.txt", "b.txt", 1), 401},
		{"GET", strings.Replace(signed("a.txt", "read", ""), "signature=v1_", "signature=v1_A", 1), 401},
		{"POST", signed("b.txt", "write", ""), 200},
		{"POST", signed("b.txt", "read", ""), 401},
		{"GET", "/files?path=a.txt", 401},
		{"GET", strings.Replace(signed("", "read", ""), "/files", "/envs", 1), 401},
		{"GET", "/metrics", 401},
		{"GET", "/health", 204},
		{"OPTIONS", "/files", 204},
	} {
		r := w.send(t, c.method, c.target, form("x", "y"), append([]string{"Content-Type", multipart}, none...)...)
		if r.StatusCode != c.status || c.status == 401 && !strings.HasPrefix(r.body, `{"code":401,"message":"`) {
			t.Errorf("%s %s: status %d, %s", c.method, c.target, r.StatusCode, r.body)
		}
		if r.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: pages cannot read the answer", c.method, c.target)
		}
	}
	w.send(t, "GET", signed("a.txt", "read", "", before), "", none...).want(t, 401, `{"code":401,"message":"signature is already expired"}`)
	w.send(t, "GET", signed("a.txt", "write", ""), "", none...).want(t, 401, `{"code":401,"message":"invalid signature"}`)
	for _, given := range []string{"", "x", token + "x", token[1:]} {
		w.call(t, processes+"List", "{}", "X-Access-Token", given).wantError(t, 401, "unauthenticated", "access token")
	}
	w.sandbox.Token = ""
	w.call(t, processes+"List", "{}", none...).want(t, 200, `{"processes":[]}`)
}

// TestAsleep has a VM that sleeps, one that may be woken, and one that is gone.
func TestAsleep(t *testing.T) {
	w := newWorld(t)
	gone := `{"code":502,"message":"The sandbox was not found","sandboxId":"iabc"}`
	w.machines.asleep.Store(true)
	w.send(t, http.MethodGet, "/health", "").want(t, 502, gone)
	w.call(t, processes+"List", "{}").want(t, 502, gone)
	w.send(t, http.MethodPost, processes+"Start", frame(script("true", "")), "Content-Type", "application/connect+json").want(t, 502, gone)
	w.sandbox.AutoResume = true
	w.send(t, http.MethodGet, "/health", "", "X-Access-Token", "wrong").want(t, 502, gone)
	w.call(t, processes+"List", "{}", "X-Access-Token", "wrong").wantError(t, 401, "unauthenticated", "")
	if n := w.machines.wakes.Load(); n != 0 {
		t.Errorf("without the token the VM was woken %d times", n)
	}
	w.call(t, processes+"List", "{}").want(t, 200, `{"processes":[]}`)
	w.send(t, http.MethodGet, "/health", "").want(t, 204, "")
	if n := w.machines.wakes.Load(); n != 1 {
		t.Errorf("the VM was woken %d times", n)
	}
	w.sandbox.VMID = "vm_other"
	w.call(t, processes+"List", "{}").want(t, 502, gone)
}

func TestInfo(t *testing.T) {
	w := newWorld(t)
	w.send(t, http.MethodGet, "/envs", "").want(t, 200, `{"A":"1"}`)
	w.sandbox.Env = nil
	w.send(t, http.MethodGet, "/envs", "").want(t, 200, `{}`)
	w.send(t, http.MethodGet, "/metrics", "").want(t, 200,
		`{"ts":1800000000,"cpu_count":2,"cpu_used_pct":25,"mem_total":1000,"mem_used":400,"mem_cache":0,"disk_total":5000,"disk_used":600}`)
	w.send(t, http.MethodGet, "/init", "").want(t, 404, `{"code":404,"message":"there is nothing at this path"}`)
	w.send(t, http.MethodPost, "/envs", "").want(t, 405, `{"code":405,"message":"this is read with GET"}`)
	w.call(t, processes+"Nothing", "{}").wantError(t, 501, "unimplemented", "/process.Process/Nothing")
	w.send(t, http.MethodGet, processes+"List", "").wantError(t, 405, "unimplemented", "POST")
	w.call(t, processes+"List", "", "Content-Type", "application/proto").wantError(t, 415, "unimplemented", "JSON")
}
