package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// routeRoutes serves two routes to the VM web.
func (f *fakeServer) routeRoutes(mux *http.ServeMux) {
	shop := api.Route{
		ID: "rt_a00000000001", VMID: "vm_web000000001", URL: "http://shop.localhost:9090", Subdomain: "shop", TargetPort: 8080, AutoWake: true,
		Auth: api.RouteAuth{Mode: api.AuthPublic}, Upstream: api.UpstreamHTTP1, CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}, UpdatedAt: api.Time{Time: testNow},
	}
	own := api.Route{
		ID: "rt_b00000000002", VMID: "vm_web000000001", URL: "http://www.example.org", Domain: "www.example.org", DomainState: api.DomainPending, TargetPort: 9000,
		Auth: api.RouteAuth{Mode: api.AuthKey}, AllowedCIDRs: []string{"192.0.2.0/24"}, Upstream: api.UpstreamH2C, CreatedAt: api.Time{Time: testNow.Add(-time.Hour)},
		Verification: &api.DomainVerification{Type: "TXT", Name: "_hatch.www.example.org", Value: "hatch-verification=x"},
	}
	f.leading = []api.Route{shop, own}
	mux.HandleFunc("GET /routes", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.leading) })
	mux.HandleFunc("GET /routes/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.leading[0]) })
	mux.HandleFunc("DELETE /routes/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("POST /routes/{id}/verify", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.leading[1]) })
	mux.HandleFunc("GET /vms/{id}/routes", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, slices.DeleteFunc(slices.Clone(f.leading), func(route api.Route) bool { return route.VMID != r.PathValue("id") }))
	})
	mux.HandleFunc("POST /vms/{id}/routes", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, f.leading[1]) })
	mux.HandleFunc("POST /vms/{id}/share", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, api.Share{URL: "http://3000-vm.localhost/?hatch_token=t", ExpiresAt: api.Time{Time: testNow}})
	})
	mux.HandleFunc("DELETE /vms/{id}/share", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
}

func TestRouteLists(t *testing.T) {
	f := newFake(t)
	for name, args := range map[string]string{"route-ls.txt": "route ls -o wide", "route-inspect.json": "route inspect shop"} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
}

func TestRouteCommands(t *testing.T) {
	f := newFake(t)
	for args, want := range map[string]struct{ call, body, out string }{
		"route add web 8080": {"POST /vms/vm_web000000001/routes", `{"target_port":8080,"auto_wake":true,"auth":{"mode":"public"},"timeouts":{}}`, "http://www.example.org\n"},
		"route add web shop=8080 --auth key --no-wake --h2c --allow 192.0.2.0/24 --response-timeout 1m": {
			"POST /vms/vm_web000000001/routes",
			`{"subdomain":"shop","target_port":8080,"auto_wake":false,"auth":{"mode":"key"},"allowed_cidrs":["192.0.2.0/24"],"timeouts":{"response_header_seconds":60},"upstream":"h2c"}`, "http://www.example.org\n",
		},
		"route verify www.example.org":    {"POST /routes/rt_b00000000002/verify", "", "http://www.example.org\n"},
		"route rm shop":                   {"DELETE /routes/rt_a00000000001", "", "shop\n"},
		"share web --port 3000 --for 2h":  {"POST /vms/vm_web000000001/share", `{"port":3000,"expires_in_seconds":7200}`, "http://3000-vm.localhost/?hatch_token=t\n"},
		"share web --end":                 {"DELETE /vms/vm_web000000001/share", "", "vm_web000000001\n"},
		"open web 8080":                   {"GET /vms/vm_web000000001/routes", "", "http://shop.localhost:9090\n"},
		"open web www.example.org":        {"GET /vms/vm_web000000001/routes", "", "http://www.example.org\n"},
		"open web 9000":                   {"POST /vms/vm_web000000001/share", `{"port":9000}`, "http://3000-vm.localhost/?hatch_token=t\n"}, // its domain is not served
		"open db 22":                      {"POST /vms/vm_db0000000002/share", `{"port":22}`, "http://3000-vm.localhost/?hatch_token=t\n"},
		"create --route a=80 --route 443": {"POST /vms?wait=running", `{"routes":[{"subdomain":"a","target_port":80},{"target_port":443}]}`, ""},
	} {
		f.calls, f.bodies = nil, nil
		s := newSession(t, f)
		if code := s.hatch(strings.Fields(args)...); code != 0 {
			t.Errorf("%s: exit code %d: %s", args, code, &s.stderr)
		}
		if !slices.Contains(f.calls, want.call) || want.body != "" && !slices.Contains(f.bodies, want.body) || want.out != "" && s.stdout.String() != want.out {
			t.Errorf("%s: printed %q, called %q with %q", args, &s.stdout, f.calls, f.bodies)
		}
	}
}

func TestRouteAddShowsTheRecordToMake(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := s.hatch("route", "add", "web", "9000", "--domain", "www.example.org", "--auth", "basic", "--username", "me", "--password-file", file); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if !strings.Contains(s.stderr.String(), `_hatch.www.example.org. TXT "hatch-verification=x"`) || !strings.Contains(f.bodies[len(f.bodies)-1], `"password":"correct horse"`) {
		t.Errorf("printed %s; sent %s", &s.stderr, f.bodies)
	}
}

func TestOpenShowsThePage(t *testing.T) {
	f := newFake(t)
	f.leading = f.leading[:1]
	s := newSession(t, f)
	var shown string
	s.tty, s.browse = true, func(_ context.Context, url string) { shown = url }
	if code := s.hatch("open", "web"); code != 0 || shown != "http://shop.localhost:9090" || !strings.Contains(s.stdout.String(), shown) {
		t.Errorf("exit code %d; showed %q; printed %s%s", code, shown, &s.stdout, &s.stderr)
	}
}

func TestRouteErrors(t *testing.T) {
	f := newFake(t)
	for args, want := range map[string]string{
		"route add web":            "takes a VM and a port",
		"route add web x":          "PORT or NAME=PORT",
		"route add web =80":        "PORT or NAME=PORT",
		"route add web 65536":      "PORT or NAME=PORT",
		"route add web 0":          "PORT or NAME=PORT",
		"create --route web":       "PORT or NAME=PORT",
		"route rm none":            "hatch route ls",
		"open web":                 "it has 2 routes",
		"open db":                  "hatch open db 8080",
		"open web none":            "none",
		"open":                     "takes a VM",
		"share web":                "either --port or --end",
		"share web --end --port 1": "either --port or --end",
	} {
		s := newSession(t, f)
		if code := s.hatch(strings.Fields(args)...); code == 0 || !strings.Contains(s.stderr.String(), want) {
			t.Errorf("%s: exit code %d: %s", args, code, &s.stderr)
		}
	}
}
