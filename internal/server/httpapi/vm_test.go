package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestCreateDecodesEveryField(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/vms", `{
		"image_id":"img_a", "template_id":"tpl_a", "vcpu_count":2, "mem_mib":1024, "disk_mib":4096,
		"boot_args":"quiet", "enable_network":false, "guest_ip":"172.16.0.10", "guest_mac":"02:fc:00:00:00:0a",
		"user_data":"#!/bin/sh\necho \"<&>\" \u00e4", "name":"web", "labels":{"a":"b"},
		"ssh_authorized_keys":["ssh-ed25519 AAAA"], "vmm":"qemu",
		"rate_limits":{"disk":{"bytes_per_second":1048576,"ops_per_second":100},"network_in":{"bytes_per_second":65536},"network_out":{"bytes_per_second":131072}}}`), 201)
	got := s.vms.request
	if got.ImageID != "img_a" || got.TemplateID != "tpl_a" || *got.VCPUs != 2 || *got.MemMiB != 1024 || *got.DiskMiB != 4096 ||
		*got.BootArgs != "quiet" || *got.EnableNetwork || got.Address.String() != "172.16.0.10" || got.MAC.String() != "02:fc:00:00:00:0a" ||
		*got.UserData != "#!/bin/sh\necho \"<&>\" ä" || got.Name != "web" || got.Labels["a"] != "b" ||
		!slices.Equal(got.SSHKeys, []string{"ssh-ed25519 AAAA"}) || got.Driver != "qemu" ||
		*got.RateLimits != (vmm.RateLimits{
			Disk: vmm.DiskLimit{BytesPerSecond: 1 << 20, OpsPerSecond: 100}, NetworkIn: vmm.NetworkLimit{BytesPerSecond: 64 << 10}, NetworkOut: vmm.NetworkLimit{BytesPerSecond: 128 << 10},
		}) {
		t.Errorf("decoded as %+v", got)
	}
}

func TestCreateWithoutABody(t *testing.T) {
	s := newServer(t)
	for _, body := range []string{"", "{}", `{"vcpu_count":null,"labels":null,"guest_ip":""}`} {
		wantStatus(t, s.call(t, "POST", "/vms", body), 201)
		got := s.vms.request
		if got.VCPUs != nil || got.EnableNetwork != nil || got.UserData != nil || got.Address.IsValid() || got.MAC != nil || got.Labels != nil {
			t.Errorf("%q is decoded as %+v", body, got)
		}
	}
}

// TestBadCreate asserts that each refusal names the field and says what is allowed.
func TestBadCreate(t *testing.T) {
	s := newServer(t)
	cases := []struct{ body, field, words string }{
		{`{"vcpu_count":"2"}`, "vcpu_count", "expected integer"},
		{`{"vcpu_count":1.5}`, "vcpu_count", "expected integer"},
		{`{"vcpu_count":0}`, "vcpu_count", ">= 1"},
		{`{"vcpu_count":-1}`, "vcpu_count", ">= 1"},
		{`{"vcpu_count":1e30}`, "vcpu_count", "<= 4096"},
		{`{"vcpu_count":1e2}`, "vcpu_count", "expected integer"},
		{`{"mem_mib":1}`, "mem_mib", ">= 64"},
		{`{"mem_mib":99999999999999999999}`, "mem_mib", "<= 67108864"},
		{`{"disk_mib":true}`, "disk_mib", "expected integer"},
		{`{"enable_network":"yes"}`, "enable_network", "expected boolean"},
		{`{"guest_ip":"172.16.0.300"}`, "guest_ip", "IPv4"},
		{`{"guest_ip":"::1"}`, "guest_ip", "IPv4"},
		{`{"guest_ip":7}`, "guest_ip", "expected string"},
		{`{"guest_mac":"02:FC"}`, "guest_mac", "six bytes"},
		{`{"guest_mac":"02:00:5e:10:00:00:00:01"}`, "guest_mac", "six bytes"},
		{`{"labels":["a"]}`, "labels", "expected object"},
		{`{"labels":{"a":1}}`, "labels.a", "expected string"},
		{`{"labels":{"a":null}}`, "labels.a", "expected string"},
		{`{"ssh_authorized_keys":"ssh-ed25519"}`, "ssh_authorized_keys", "expected array"},
		{`{"ssh_authorized_keys":[1]}`, "ssh_authorized_keys[0]", "expected string"},
		{`{"name":"` + strings.Repeat("a", 64) + `"}`, "name", "<= 63"},
		{`{"rate_limits":{"disk":{"bytes_per_second":0}}}`, "rate_limits.disk.bytes_per_second", ">= 65536"},
		{`{"rate_limits":{"network_in":{"bytes_per_second":10000000001}}}`, "rate_limits.network_in.bytes_per_second", "<= 10000000000"},
		{`{"rate_limits":{"network_in":{"ops_per_second":10}}}`, "rate_limits.network_in.ops_per_second", "unknown field"},
		{`{"rate_limits":{"Disk":{"bytes_per_second":1}}}`, "rate_limits.Disk", "unknown field"},
		{`{"colour":"red"}`, "colour", "unknown field"},
		{`{"VCPU_COUNT":2}`, "VCPU_COUNT", "unknown field"},
		{`{"vcpu_count":1,"Vcpu_Count":-5}`, "Vcpu_Count", "unknown field"},
		{`[]`, "body", "expected object"},
		{`null`, "body", "expected object"},
		{`"x"`, "body", "expected object"},
		{`{"vcpu_count":1} {}`, "body", "not valid JSON"},
		{`{"vcpu_count":1}x`, "body", "not valid JSON"},
		{`{"vcpu_count":`, "body", "not valid JSON"},
		{`vcpu_count=1`, "body", "not valid JSON"},
		{"{\"name\":\"\xff\"}", "", "UTF-8"},
	}
	for _, c := range cases {
		reply := s.call(t, "POST", "/vms", c.body)
		if reply.StatusCode != 400 {
			t.Errorf("%s: status %d: %s", c.body, reply.StatusCode, reply.body)
			continue
		}
		p := reply.problem(t)
		if p.Field != c.field || !strings.Contains(p.Error, c.words) || !strings.HasPrefix(p.Error, c.field) {
			t.Errorf("%s: field %q, error %q", c.body, p.Field, p.Error)
		}
		if (p.Code == "unknown_field") != (c.words == "unknown field") {
			t.Errorf("%s: code %s", c.body, p.Code)
		}
		if p.Code == "" || p.RequestID == "" || p.Status != 400 || p.Detail != p.Error {
			t.Errorf("%s: incomplete: %s", c.body, reply.body)
		}
	}
	if s.vms.askedFor("create") {
		t.Error("a bad request reached the service")
	}
}

func TestAllErrorsAreReported(t *testing.T) {
	s := newServer(t)
	p := s.call(t, "POST", "/vms", `{"vcpu_count":0,"mem_mib":1,"user_data":5}`).problem(t)
	if len(p.Errors) != 3 {
		t.Errorf("%d faults: %+v", len(p.Errors), p.Errors)
	}
}

// TestErrorsDoNotRepeatTheBody sends a secret together with an invalid field.
func TestErrorsDoNotRepeatTheBody(t *testing.T) {
	s := newServer(t)
	for _, body := range []string{`{"user_data":"S3CRET","x":1,"y":2}`, `{"user_data":"S3CRET"} {`, `{"user_data":["S3CRET"]}`} {
		if reply := s.call(t, "POST", "/vms", body); strings.Contains(string(reply.body), "S3CRET") {
			t.Errorf("%s: %s", body, reply.body)
		}
	}
}

func TestBadQueries(t *testing.T) {
	s := newServer(t)
	one := "/vms/" + knownVM
	cases := []struct{ method, target, field, words string }{
		{"GET", "/vms?limit=0", "limit", ">= 1"},
		{"GET", "/vms?limit=1001", "limit", "<= 1000"},
		{"GET", "/vms?limit=x", "limit", "invalid integer"},
		{"GET", "/vms?state=happy", "state", "starting, running"},
		{"GET", "/vms?label=%21%3Db", "label", "KEY=VALUE"},
		{"GET", "/vms?label=%3Db", "label", "KEY=VALUE"},
		{"GET", "/vms?label=a%3Db&label=a%3Dc", "label", "two values"},
		{"GET", "/vms?colour=red", "colour", "unknown query parameter"},
		{"POST", "/vms?wait=forever", "wait", "running, ready"},
		{"POST", "/vms?wait_timeout=11m", "wait_timeout", "10m"},
		{"POST", "/vms?wait_timeout=-1s", "wait_timeout", "10m"},
		{"POST", one + "/start?wait_timeout=60", "wait_timeout", "90s"},
		{"GET", one + "/wait", "for", "required"},
		{"GET", one + "/wait?for=sunshine", "for", "cloud-init"},
		{"GET", one + "/wait?for=port:0", "for", "port:1"},
		{"GET", one + "/wait?for=port:65536", "for", "port:65535"},
		{"GET", one + "/wait?for=port:080", "for", "port:1"},
		{"GET", one + "/wait?for=http:/", "for", "http:8080/health"},
		{"GET", one + "/wait?for=http:0/", "for", "1 to 65535"},
		{"GET", one + "/wait?for=http://example.com/", "for", "http:8080/health"},
		{"GET", one + "/wait?for=http:80@example.com/", "for", "http:8080/health"},
		{"GET", one + "/wait?for=http:80%2Fa%20b", "for", "visible"},
		{"GET", one + "/wait?for=http:80%2Fa%23b", "for", "visible"},
		{"GET", one + "/wait?for=http:80%2F%25zz", "for", "percent-encoded"},
		{"GET", one + "/wait?for=http:80/" + strings.Repeat("a", 1100), "for", "1100"},
		{"GET", one + "/wait?for=ready&timeout=1h", "timeout", "10m"},
		{"GET", one + "/logs?tail=-1", "tail", ">= 0"},
		{"GET", one + "/logs?source=kernel", "source", "console"},
		{"GET", one + "/logs?follow=maybe", "follow", "invalid boolean"},
		{"GET", "/vms/a%00b", "", "control characters"},
		{"GET", "/vms?name=%ff", "", "UTF-8"},
	}
	for _, c := range cases {
		reply := s.call(t, c.method, c.target, "")
		if reply.StatusCode != 400 {
			t.Errorf("%s: status %d: %s", c.target, reply.StatusCode, reply.body)
			continue
		}
		if p := reply.problem(t); p.Field != c.field || !strings.Contains(p.Error, c.words) {
			t.Errorf("%s: field %q, error %q", c.target, p.Field, p.Error)
		}
	}
}

func TestVisibility(t *testing.T) {
	s := newServer(t)
	s.vms.all = []vm.VM{sampleVM(knownVM), sampleVM("vm_2"), sampleVM("vm_3")}
	list := decode[[]api.VM](t, s.call(t, "GET", "/vms", ""))
	if len(list) != 3 || list[2].ID != "vm_3" || list[0].UserData != "" || list[0].SocketPath != "" || list[0].BootArgs != "" {
		t.Errorf("the list shows %+v", list)
	}
	one := decode[api.VM](t, s.call(t, "GET", "/vms/"+knownVM, ""))
	made := decode[api.VM](t, s.call(t, "POST", "/vms", ""))
	for _, v := range []api.VM{one, made} {
		if v.UserData != "#!/bin/sh\necho <hidden>" || v.SocketPath != "/run/secret.sock" || v.BootArgs != "quiet" {
			t.Errorf("the owner sees %+v", v)
		}
	}
}

func TestVMOnTheWire(t *testing.T) {
	s := newServer(t)
	got := string(s.call(t, "GET", "/vms/"+knownVM, "").body)
	want := `{"id":"vm_known0000000","name":"web","hostname":"web","image_id":"img_default","template_id":"tpl_1","state":"running","state_reason":"all well",` +
		`"conditions":[{"type":"network_ready","status":"unknown","changed_at":"2026-03-06T11:00:00.123Z"},` +
		`{"type":"agent_ready","status":"true","reason":"Connected","changed_at":"2026-03-06T11:00:00.123Z"},` +
		`{"type":"vmm_healthy","status":"unknown","changed_at":"2026-03-06T11:00:00.123Z"},` +
		`{"type":"cloud_init_done","status":"unknown","changed_at":"2026-03-06T11:00:00.123Z"}],` +
		`"vcpu_count":2,"mem_mib":1024,"disk_mib":2048,"boot_args":"quiet","guest_ip":"172.16.0.10","guest_mac":"02:FC:00:00:00:0A",` +
		`"tap_name":"tap0","ssh_port":16001,"ssh_host_keys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"],"socket_path":"/run/secret.sock","snapshot_id":"snap_1","user_data":"#!/bin/sh\necho <hidden>","enable_network":true,` +
		`"labels":{"env":"test"},"ssh_authorized_keys":["ssh-ed25519 AAAA me"],"vmm":"fake",` +
		`"created_at":"2026-03-06T11:00:00.123Z","updated_at":"2026-03-06T11:00:00.123Z","started_at":"2026-03-06T11:00:00.123Z"}` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if got := string(s.call(t, "DELETE", "/vms/"+knownVM, "").body); got != `{"status":"deleted"}`+"\n" {
		t.Errorf("delete answers %s", got)
	}
	if got := string(s.call(t, "GET", "/vms", "").body); got != "[]\n" {
		t.Errorf("an empty list is %s", got)
	}
}

func TestListPages(t *testing.T) {
	s := newServer(t)
	s.vms.all, s.vms.next = []vm.VM{sampleVM(knownVM)}, "vm_last"
	reply := s.call(t, "GET", "/vms?limit=1&state=running&label=a%3Db&label=c%3D%26&name=web", "")
	if f := s.vms.filter; f.Limit != 1 || f.State != vm.Running || f.Name != "web" || len(f.Labels) != 2 || f.Labels["c"] != "&" {
		t.Errorf("filter is %+v", f)
	}
	link := reply.Header.Get("Link")
	target, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !strings.HasSuffix(link, `>; rel="next"`) {
		t.Fatalf("Link is %q", link)
	}
	s.vms.next = ""
	reply = s.call(t, "GET", target, "")
	wantStatus(t, reply, 200)
	if f := s.vms.filter; f.Limit != 1 || f.State != vm.Running || f.Name != "web" || f.After != "vm_last" || f.Labels["a"] != "b" || f.Labels["c"] != "&" {
		t.Errorf("the next page's filter is %+v", f)
	}
	if link := reply.Header.Get("Link"); link != "" {
		t.Errorf("the last page links to %q", link)
	}
	s.call(t, "GET", "/vms", "")
	if s.vms.filter.Limit != 1000 {
		t.Errorf("the default page has %d VMs", s.vms.filter.Limit)
	}
}

func TestCreateWaits(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/vms", ""), 201)
	if s.vms.askedFor("wait") {
		t.Error("waited without being asked to")
	}
	wantStatus(t, s.call(t, "POST", "/vms?wait=ready", ""), 201)
	if !s.vms.want.Ready {
		t.Errorf("waited for %+v", s.vms.want)
	}
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/start?wait=ready", ""), 200)
}

// TestCreateIsNotLost lets the wait fail in each way that leaves a VM behind.
func TestCreateIsNotLost(t *testing.T) {
	s := newServer(t)
	for _, code := range []string{"wait_timeout", "wait_impossible"} {
		s.vms.wait = func(ctx context.Context) (vm.VM, error) {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("the wait has no bound")
			}
			return vm.VM{}, errs.New(errs.Unavailable, code, "late")
		}
		reply := s.call(t, "POST", "/vms?wait=ready&wait_timeout=10ms", "")
		wantStatus(t, reply, 201)
		if v := decode[api.VM](t, reply); v.ID != knownVM {
			t.Errorf("%s: returned %+v", code, v)
		}
	}
	s.vms.create = func(ctx context.Context) (vm.VM, error) {
		<-ctx.Done()
		return sampleVM(knownVM), errs.New(errs.TimedOut, "still_working", "late")
	}
	reply := s.call(t, "POST", "/vms?wait_timeout=10ms", "")
	wantStatus(t, reply, 201)
	if v := decode[api.VM](t, reply); v.ID != knownVM {
		t.Errorf("a slow create: returned %+v", v)
	}
}

// TestFailedCreateNamesItsVM expects the id of what a failed request has left.
func TestFailedCreateNamesItsVM(t *testing.T) {
	s := newServer(t)
	failed := errs.New(errs.Internal, "start_failed", "cannot start it").WithVM("vm_left")
	s.vms.create = func(context.Context) (vm.VM, error) { return vm.VM{}, failed }
	reply := s.call(t, "POST", "/vms", "")
	wantStatus(t, reply, 500)
	if p := reply.problem(t); p.VMID != "vm_left" || reply.Header.Get("Location") != "/vms/vm_left" {
		t.Errorf("%+v, Location %q", p, reply.Header.Get("Location"))
	}
	s.vms.failed = []error{failed}
	reply = s.call(t, "POST", "/vms/"+knownVM+"/fork", `{"count":2}`)
	if made := decode[api.Copies](t, reply); len(made.Failed) != 1 || made.Failed[0].VMID != "vm_left" {
		t.Errorf("a fork: %s", reply.body)
	}
}

// TestStartIsLate lets a start take longer than its caller waits.
func TestStartIsLate(t *testing.T) {
	s := newServer(t)
	s.vms.start = func(ctx context.Context) (vm.VM, error) {
		<-ctx.Done()
		return vm.VM{}, errs.New(errs.TimedOut, "still_working", "late")
	}
	reply := s.call(t, "POST", "/vms/"+knownVM+"/start?wait_timeout=10ms", "")
	wantStatus(t, reply, 200)
	if v := decode[api.VM](t, reply); v.ID != knownVM {
		t.Errorf("returned %+v", v)
	}
	s.vms.start = func(ctx context.Context) (vm.VM, error) {
		<-ctx.Done()
		return vm.VM{}, ctx.Err()
	}
	reply = s.call(t, "POST", "/vms/"+knownVM+"/start?wait_timeout=10ms", "")
	wantStatus(t, reply, 409)
	if p := reply.problem(t); p.Code != "wait_timeout" {
		t.Errorf("%+v", p)
	}
}

// TestAFullHostIs507 fails as a file of the host does that no room is left for.
func TestAFullHostIs507(t *testing.T) {
	s := newServer(t)
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		s.vms.start = func(context.Context) (vm.VM, error) {
			return vm.VM{}, &os.PathError{Op: "write", Path: "/secret/place", Err: full}
		}
		reply := s.call(t, "POST", "/vms/"+knownVM+"/start", "")
		wantStatus(t, reply, 507)
		if p := reply.problem(t); p.Code != "disk_full" || strings.Contains(p.Error, "secret") {
			t.Errorf("%v: %+v", full, p)
		}
	}
}

func TestWaitTimeout(t *testing.T) {
	s := newServer(t)
	s.vms.wait = func(ctx context.Context) (vm.VM, error) {
		<-ctx.Done()
		return vm.VM{}, vm.WaitTimeout(vm.VM{})
	}
	reply := s.call(t, "GET", "/vms/"+knownVM+"/wait?for=port:8080&timeout=10ms", "")
	wantStatus(t, reply, 409)
	if p := reply.problem(t); p.Code != "wait_timeout" || s.vms.want.Port != 8080 {
		t.Errorf("%+v waiting for %+v", p, s.vms.want)
	}
}

func TestWaitFor(t *testing.T) {
	s := newServer(t)
	for given, want := range map[string]vm.WaitFor{
		"running": {State: vm.Running}, "error": {State: vm.Failed}, "ready": {Ready: true}, "agent": {Agent: true},
		"cloud-init": {CloudInit: true}, "ssh": {SSH: true}, "port:1": {Port: 1},
		"http:80": {HTTP: vm.HTTPPage{Port: 80, Path: "/"}}, "http:65535/a/b?c=d&e=%20": {HTTP: vm.HTTPPage{Port: 65535, Path: "/a/b?c=d&e=%20"}},
		"http:80//example.com/": {HTTP: vm.HTTPPage{Port: 80, Path: "//example.com/"}},
	} {
		wantStatus(t, s.call(t, "GET", "/vms/"+knownVM+"/wait?for="+url.QueryEscape(given), ""), 200)
		if s.vms.want != want {
			t.Errorf("%s waits for %+v", given, s.vms.want)
		}
	}
}

// TestKinds causes an error of each kind, and one without a kind.
func TestKinds(t *testing.T) {
	s := newServer(t)
	for kind, status := range map[errs.Kind]int{
		errs.Invalid: 400, errs.Unauthenticated: 401, errs.Forbidden: 403, errs.NotFound: 404, errs.Conflict: 409,
		errs.TooLarge: 413, errs.TooMany: 429, errs.Exhausted: 507, errs.Unsupported: 501, errs.Unavailable: 503, errs.TimedOut: 409, errs.Internal: 500,
	} {
		cause := errors.New("open /var/lib/secret: denied")
		s.vms.create = func(context.Context) (vm.VM, error) {
			return vm.VM{}, fmt.Errorf("cannot create: %w",
				errs.New(kind, "some_code", "some message").WithField("name").WithHint("some hint").WithCause(cause))
		}
		reply := s.call(t, "POST", "/vms", "")
		wantStatus(t, reply, status)
		p := reply.problem(t)
		if p.Error != "some message" || p.Code != "some_code" || p.Field != "name" || p.Hint != "some hint" || p.Title != http.StatusText(status) {
			t.Errorf("%s: %s", kind, reply.body)
		}
		mayRetry := status == 429 || status == 503 || status == 507
		if seconds, err := strconv.Atoi(reply.Header.Get("Retry-After")); mayRetry != (err == nil && seconds > 0) {
			t.Errorf("%s: Retry-After is %q", kind, reply.Header.Get("Retry-After"))
		}
	}
	s.vms.create = func(context.Context) (vm.VM, error) { return vm.VM{}, io.ErrUnexpectedEOF }
	reply := s.call(t, "POST", "/vms", "")
	wantStatus(t, reply, 500)
	if p := reply.problem(t); p.Code != "internal" || strings.Contains(string(reply.body), "EOF") || !strings.Contains(s.log.String(), p.RequestID) {
		t.Errorf("%s\n%s", reply.body, s.log)
	}
	if !strings.Contains(s.log.String(), "unexpected EOF") {
		t.Error("the log does not have the cause")
	}
}

// User data may be any bytes, and is shown as what it is.
func TestUserDataOfAnyBytes(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/vms", `{"user_data":"H4sI/w==","user_data_encoding":"base64"}`), 201)
	if got := s.vms.request.UserData; got == nil || *got != "\x1f\x8b\x08\xff" {
		t.Errorf("decoded as %q", *got)
	}
	for body, want := range map[string]string{
		`{"user_data":"H4sI!","user_data_encoding":"base64"}`: "user_data: is not valid base64",
		`{"user_data_encoding":"base64"}`:                     "user_data_encoding: is given without user_data",
		`{"user_data":"a","user_data_encoding":"gzip"}`:       "user_data_encoding",
		`{"user_data":"\ud800"}`:                              "half of a surrogate pair",
		`{"user_data":"\\\udc00 "}`:                           "half of a surrogate pair",
	} {
		r := s.call(t, "POST", "/vms", body)
		if r.StatusCode != 400 && r.StatusCode != 422 {
			t.Errorf("%s is answered with %d", body, r.StatusCode)
		}
		if !strings.Contains(string(r.body), want) {
			t.Errorf("%s is answered with %s, want %q in it", body, r.body, want)
		}
	}
	wantStatus(t, s.call(t, "POST", "/vms", `{"user_data":"\ud83d\ude00 \\ud800"}`), 201)
	if got := s.vms.request.UserData; *got != "😀 \\ud800" {
		t.Errorf("decoded as %q", *got)
	}
}
