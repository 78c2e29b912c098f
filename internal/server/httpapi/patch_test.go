package httpapi_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

// TestObjectsObeyConditions reads, changes and deletes each kind of object that has an
// ETag.
func TestObjectsObeyConditions(t *testing.T) {
	s := newServer(t)
	for path, patch := range map[string]string{
		"/vms/" + knownVM:  `{"name":"web"}`,
		"/templates/tpl_1": `{"name":"small"}`,
		"/webhooks/whk_1":  `{"url":"https://example.com"}`,
	} {
		do := func(method, header, value string) reply {
			body := ""
			if method == "PATCH" {
				body = patch
			}
			r := s.request(t, method, path, body)
			r.Header.Set("Accept-Encoding", "identity") // else tags are those of compressed answers
			if header != "" {
				r.Header.Set(header, value)
			}
			return s.send(t, r)
		}
		first := do("GET", "", "")
		tag := first.Header.Get("ETag")
		if again := do("GET", "", "").Header.Get("ETag"); tag == "" || again != tag {
			t.Errorf("%s: the tag is %s, then %s", path, tag, again)
		}
		for _, c := range []struct {
			method, header, value string
			status                int
		}{
			{"GET", "If-None-Match", `"x", W/` + tag, 304},
			{"GET", "If-None-Match", strings.Replace(tag[1:], `"`, `-gzip"`, 1), 200}, // no tag at all
			{"GET", "If-None-Match", `"` + strings.Replace(tag[1:], `"`, `-gzip"`, 1), 304},
			{"GET", "If-None-Match", `"x"`, 200},
			{"GET", "If-Match", tag, 200},
			{"GET", "If-Match", `"x"`, 412},
			{"PATCH", "If-Match", `"x"`, 412},
			{"PATCH", "If-Match", "W/" + tag, 412},
			{"PATCH", "If-Match", "x", 400},
			{"PATCH", "If-None-Match", tag, 412},
			{"PATCH", "If-None-Match", `"x"`, 200},
			{"PATCH", "If-Match", `"x",` + tag, 200},
			{"PATCH", "If-Match", "*", 200},
			{"PATCH", "", "", 200},
			{"DELETE", "If-Match", `"x"`, 412},
			{"DELETE", "If-None-Match", "*", 412},
			{"DELETE", "If-Match", tag, 200},
			{"DELETE", "", "", 200},
		} {
			reply := do(c.method, c.header, c.value)
			if reply.StatusCode != c.status {
				t.Errorf("%s %s, %s: %s: status %d, want %d: %s", c.method, path, c.header, c.value, reply.StatusCode, c.status, reply.body)
				continue
			}
			if c.status == 412 {
				if p := reply.problem(t); p.Code != "precondition_failed" || p.Field != c.header {
					t.Errorf("%s %s: %s", c.method, path, reply.body)
				}
			}
			if c.status == 304 && (len(reply.body) > 0 || reply.Header.Get("ETag") != tag) {
				t.Errorf("%s: a 304 has %q, tag %s", path, reply.body, reply.Header.Get("ETag"))
			}
			if c.method == "PATCH" && c.status == 200 && reply.Header.Get("ETag") == "" {
				t.Errorf("PATCH %s: no ETag", path)
			}
		}
	}
}

func TestPatchVM(t *testing.T) {
	s := newServer(t)
	patch := func(body string) reply { return s.call(t, "PATCH", "/vms/"+knownVM, body) }
	// The sample is called web, has 2 CPUs, 1024 MiB and the label env=test.
	v := decode[api.VM](t, patch(`{"name":"db","description":"new","labels":{"tier":"db","env":null},"vcpu_count":4,"mem_mib":2048}`))
	if v.Name != "db" || v.Description != "new" || !maps.Equal(v.Labels, map[string]string{"tier": "db"}) || v.VCPUCount != 4 || v.MemMiB != 2048 {
		t.Errorf("changed to %+v", v)
	}
	v = decode[api.VM](t, patch(`{"name":null,"labels":null}`))
	if v.Name != "" || len(v.Labels) != 0 || v.VCPUCount != 2 || v.MemMiB != 1024 {
		t.Errorf("changed to %+v", v)
	}
	// A client may send back all that it has read.
	whole := s.call(t, "GET", "/vms/"+knownVM, "").body
	wantStatus(t, patch(string(whole)), 200)
	wantStatus(t, patch(`{"image_id":"img_default","user_data":"#!/bin/sh\necho <hidden>"}`), 200)
	wantStatus(t, patch(`{}`), 200)

	for body, want := range map[string][]string{
		`{"disk_mib":4096}`: {"disk_mib: cannot be changed: a disk keeps its size"},
		`{"image_id":"img_b","hostname":"x","vcpu_count":4}`: {"hostname: cannot be changed: it is the guest's own", "image_id: cannot be changed"},
		`{"id":"vm_x"}`:      {"id: cannot be changed"},
		`{"user_data":null}`: {"user_data: cannot be changed"},
		`{"colour":"red"}`:   {"colour: unknown field"},
		`{"Name":"x"}`:       {"Name: unknown field"},
		`{"name":7}`:         {"name: expected string"},
		`{"vcpu_count":"4"}`: {"vcpu_count: expected integer"},
		`{"vcpu_count":1.5}`: {"vcpu_count: expected integer"},
		`{"labels":{"a":1}}`: {"labels.a: expected string"},
		`{"labels":"x"}`:     {"labels: expected"},
		`[]`:                 {"body: expected object"},
		`{"name":`:           {"body: not valid JSON"},
		`{"name":"\ud800"}`:  {"body: not valid JSON"},
	} {
		reply := patch(body)
		p := reply.problem(t)
		if reply.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, reply.StatusCode, reply.body)
			continue
		}
		found := []string{p.Error}
		if len(p.Errors) > 0 {
			found = nil
			for _, e := range p.Errors {
				found = append(found, strings.TrimPrefix(e.Location, "body.")+": "+e.Message)
			}
		}
		if !slices.EqualFunc(found, want, strings.HasPrefix) || p.Field == "" {
			t.Errorf("%s: %q, field %q, want %q", body, found, p.Field, want)
		}
	}
	if reply := patch(""); reply.StatusCode != 400 {
		t.Errorf("no body: %d %s", reply.StatusCode, reply.body)
	}
	r := s.request(t, "PATCH", "/vms/"+knownVM, `{"name":"x"}`)
	r.Header.Set("Content-Type", "text/plain")
	wantStatus(t, s.send(t, r), 415)
	r = s.request(t, "POST", "/vms", `{"name":"x"}`)
	r.Header.Set("Content-Type", "application/merge-patch+json")
	wantStatus(t, s.send(t, r), 415)
}

func TestPatchTemplate(t *testing.T) {
	s := newServer(t)
	// The sample has 256 MiB, user data and a description.
	wantStatus(t, s.call(t, "PATCH", "/templates/tpl_1", `{"mem_mib":512,"description":null,"labels":{"a":"b"},"rate_limits":{"disk":{"ops_per_second":100}}}`), 200)
	got := s.templates.made
	if *got.MemMiB != 512 || got.Description != nil || got.Labels["a"] != "b" || *got.UserData != "hidden" || got.RateLimits.Disk.OpsPerSecond != 100 || got.Name != "small" {
		t.Errorf("changed to %+v", got)
	}
	wantStatus(t, s.call(t, "PATCH", "/templates/tpl_1", `{"user_data":"/w==","user_data_encoding":"base64"}`), 200)
	if got := *s.templates.made.UserData; got != "\xff" {
		t.Errorf("user data %q", got)
	}
	for body, field := range map[string]string{`{"id":"tpl_2"}`: "id", `{"rate_limits":{"dsk":{}}}`: "rate_limits.dsk", `{"vcpu_count":4097}`: "vcpu_count", `{"name":""}`: "name"} {
		if p := s.call(t, "PATCH", "/templates/tpl_1", body).problem(t); p.Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
}
