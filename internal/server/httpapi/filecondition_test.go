package httpapi_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestConditionalFileRequests sends each method with each kind of condition, in the
// forms that RFC 9110 allows.
func TestConditionalFileRequests(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "f", "first")
	at := time.Date(2026, 3, 6, 12, 0, 0, 5000, time.UTC)
	if err := os.Chtimes(filepath.Join(s.guest.dir, "f"), at, at); err != nil {
		t.Fatal(err)
	}
	tag := s.call(t, "GET", files("", "/f", ""), "").Header.Get("ETag")
	old, now, later := at.Add(-time.Hour).Format(http.TimeFormat), at.Format(http.TimeFormat), at.Add(time.Hour).Format(http.TimeFormat)
	type headers map[string]string
	for _, c := range []struct {
		method, path string
		headers      headers
		status       int
	}{
		{"GET", "/f", headers{"If-None-Match": tag}, 304},
		{"GET", "/f", headers{"If-None-Match": `"x", W/` + tag}, 304},
		{"GET", "/f", headers{"If-None-Match": "*"}, 304},
		{"GET", "/f", headers{"If-None-Match": `"x"`}, 200},
		{"GET", "/f", headers{"If-None-Match": `x`}, 200},
		{"GET", "/f", headers{"If-Match": tag}, 200},
		{"GET", "/f", headers{"If-Match": "*"}, 200},
		{"GET", "/f", headers{"If-Match": `"x", ` + tag}, 200},
		{"GET", "/f", headers{"If-Match": `W/` + tag}, 412},
		{"GET", "/f", headers{"If-Match": `"x"`, "If-None-Match": tag}, 412},
		{"GET", "/f", headers{"If-Match": `x`}, 400},
		{"GET", "/f", headers{"If-Modified-Since": now}, 304},
		{"GET", "/f", headers{"If-Modified-Since": old}, 200},
		{"GET", "/f", headers{"If-Modified-Since": "yesterday"}, 200},
		{"GET", "/f", headers{"If-Modified-Since": now, "If-None-Match": `"x"`}, 200},
		{"GET", "/f", headers{"If-Unmodified-Since": old}, 412},
		{"GET", "/f", headers{"If-Unmodified-Since": old, "If-Match": tag}, 200},
		{"GET", "/f", headers{"If-Unmodified-Since": now}, 200},
		{"HEAD", "/f", headers{"If-None-Match": tag}, 304},
		{"HEAD", "/f", headers{"If-Match": `"x"`}, 412},

		{"PUT", "/f", headers{"If-Match": `"x"`}, 412},
		{"PUT", "/f", headers{"If-Match": `W/` + tag}, 412},
		{"PUT", "/f", headers{"If-None-Match": `"x", W/` + tag}, 412},
		{"PUT", "/f", headers{"If-None-Match": "*"}, 412},
		{"PUT", "/f", headers{"If-Unmodified-Since": old}, 412},
		{"PUT", "/f", headers{"If-Match": `x`}, 400},
		{"PUT", "/f", headers{"If-None-Match": `x`}, 400},
		{"PUT", "/none", headers{"If-Match": "*"}, 412},
		{"PUT", "/none", headers{"If-Match": tag}, 412},
		{"PUT", "/none", headers{"If-Unmodified-Since": later}, 412},
		{"DELETE", "/f", headers{"If-Match": `"x"`}, 412},
		{"DELETE", "/f", headers{"If-None-Match": tag}, 412},
		{"DELETE", "/f", headers{"If-Unmodified-Since": old}, 412},
		{"DELETE", "/none", headers{"If-Match": "*"}, 404},
	} {
		r := s.request(t, c.method, files("", c.path, ""), "")
		if c.method == "PUT" {
			r = s.request(t, c.method, files("", c.path, ""), "changed")
		}
		for name, value := range c.headers {
			r.Header.Set(name, value)
		}
		reply := s.send(t, r)
		if reply.StatusCode != c.status {
			t.Errorf("%s %s %v: status %d, want %d: %s", c.method, c.path, c.headers, reply.StatusCode, c.status, reply.body)
		}
		if c.status == 412 && c.method != "HEAD" && reply.problem(t).Code != "precondition_failed" {
			t.Errorf("%s %s %v: %s", c.method, c.path, c.headers, reply.body)
		}
	}
	if got := s.guest.content("f"); got != "first" {
		t.Fatalf("it has become %q", got)
	}
	if _, err := os.Stat(filepath.Join(s.guest.dir, "none")); err == nil {
		t.Fatal("a file was made")
	}

	// Conditions that hold; each answer has the next tag.
	put := func(path, header, value string) string {
		t.Helper()
		r := s.request(t, "PUT", files("", path, ""), "second")
		r.Header.Set(header, value)
		reply := s.send(t, r)
		wantStatus(t, reply, 200)
		return reply.Header.Get("ETag")
	}
	tag = put("/f", "If-Match", `"x",`+tag)
	put("/f", "If-Match", tag)
	tag = put("/f", "If-None-Match", `"x"`)
	put("/new", "If-None-Match", "*")
	r := s.request(t, "DELETE", files("", "/f", ""), "")
	r.Header.Add("If-Match", `"x"`)
	r.Header.Add("If-Match", tag) // on a line of its own
	wantStatus(t, s.send(t, r), 200)

	r = s.request(t, "PUT", files("/tar", "/tmp", ""), emptyTar)
	r.Header.Set("If-Match", tag)
	if reply := s.send(t, r); reply.StatusCode != 501 || reply.problem(t).Code != "condition_not_supported" {
		t.Errorf("a tree: %d %s", reply.StatusCode, reply.body)
	}
}

// What has no ETag is not deleted for a client that names one.
func TestDeleteOfAnObjectWithoutAnETag(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/images/img_default", "/snapshots/snap_1", "/keys/key_1", "/vms/" + knownVM + "/execs/exec_1"} {
		r := s.request(t, "DELETE", path, "")
		r.Header.Set("If-Match", `"x"`)
		reply := s.send(t, r)
		if p := reply.problem(t); reply.StatusCode != 412 || p.Field != "If-Match" || !strings.Contains(p.Hint, "no ETag") {
			t.Errorf("%s: %d %+v", path, reply.StatusCode, p)
		}
	}
	r := s.request(t, "DELETE", "/images/img_default", "")
	r.Header.Set("If-Match", "*")
	wantStatus(t, s.send(t, r), 200)
}
