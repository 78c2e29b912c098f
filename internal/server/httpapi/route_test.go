package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

// fakeCounts counts for the account of the good key.
type fakeCounts struct{}

func (fakeCounts) CountVMs(_ context.Context, scope access.Scope) (int, error) {
	return 3, onlyGood(scope)
}

func (fakeCounts) CountRoutes(_ context.Context, scope access.Scope) (int, error) {
	return 2, onlyGood(scope)
}

func onlyGood(scope access.Scope) error {
	if scope != access.Owner(goodAcc) {
		return errors.New("no such user")
	}
	return nil
}

// fakeRoutes knows rt_1 of knownVM, and what it was given last.
type fakeRoutes struct {
	draft  route.Draft
	caller access.Principal
	life   time.Duration
	ended  string
	domain bool // rt_1 has a domain that is not verified
	leads  bool // to knownVM
}

func (f *fakeRoutes) sample() route.Route {
	r := route.Route{ID: "rt_1", OwnerID: goodAcc, VMID: knownVM, CreatedAt: began, UpdatedAt: began, Spec: route.Spec{
		Subdomain: "web", Port: 8080, Upstream: route.HTTP1, ResponseTimeout: time.Minute, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Auth: route.Auth{Mode: route.Basic, Username: "me", Hash: []byte("hidden")},
	}}
	if f.domain {
		r.Subdomain, r.Domain, r.Proof = "", "www.example.org", "hatch-verification=x"
	}
	return r
}

func (f *fakeRoutes) DecideAll(drafts []route.Draft) ([]route.Spec, error) {
	return (&route.Service{Config: route.Config{Domain: "localhost"}}).DecideAll(drafts)
}

func (f *fakeRoutes) Of(ctx context.Context, scope access.Scope, vmID string) ([]route.Route, error) {
	return f.List(ctx, scope, vmID)
}

func (f *fakeRoutes) Create(_ context.Context, caller access.Principal, vmID string, d route.Draft) (route.Route, error) {
	f.caller, f.draft = caller, d
	return f.sample(), f.knows(caller.Scope(), vmID)
}

func (f *fakeRoutes) knows(scope access.Scope, vmID string) error {
	if scope != access.Owner(goodAcc) || vmID != knownVM {
		return errs.New(errs.NotFound, "vm_not_found", "there is no such VM")
	}
	return nil
}

func (f *fakeRoutes) Get(_ context.Context, scope access.Scope, id string) (route.Route, error) {
	if scope != access.Owner(goodAcc) || id != "rt_1" {
		return route.Route{}, errs.New(errs.NotFound, "route_not_found", "there is no such route")
	}
	return f.sample(), nil
}

func (f *fakeRoutes) List(_ context.Context, scope access.Scope, vmID string) ([]route.Route, error) {
	if vmID != "" {
		if err := f.knows(scope, vmID); err != nil || !f.leads {
			return nil, err
		}
	}
	return []route.Route{f.sample()}, nil
}

func (f *fakeRoutes) Update(ctx context.Context, scope access.Scope, id string, change func(route.Route) (route.Draft, error)) (route.Route, error) {
	r, err := f.Get(ctx, scope, id)
	if err == nil {
		f.draft, err = change(r)
	}
	return r, err
}

func (f *fakeRoutes) Delete(ctx context.Context, scope access.Scope, id string, check func(route.Route) error) error {
	r, err := f.Get(ctx, scope, id)
	if err != nil {
		return err
	}
	return check(r)
}

func (f *fakeRoutes) Verify(ctx context.Context, scope access.Scope, id string) (route.Route, error) {
	return f.Get(ctx, scope, id)
}

func (f *fakeRoutes) Address(r route.Route) string { return "http://" + r.Label() + ".localhost" }

func (f *fakeRoutes) Share(_ context.Context, scope access.Scope, vmID string, port int, life time.Duration) (string, time.Time, error) {
	f.life = life
	return fmt.Sprintf("http://%d.localhost/?hatch_token=x", port), began.Add(life), f.knows(scope, vmID)
}

func (f *fakeRoutes) EndLinks(_ context.Context, scope access.Scope, vmID string) error {
	f.ended = vmID
	return f.knows(scope, vmID)
}

func TestCreateRoute(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "POST", "/vms/"+knownVM+"/routes", `{"subdomain":"web","target_port":8080,"auto_wake":false,"auth":{"mode":"basic","username":"me","password":"correct horse"},`+
		`"allowed_cidrs":["192.0.2.9/24"],"timeouts":{"response_header_seconds":60},"upstream":"h2c"}`)
	wantStatus(t, reply, 201)
	d := s.routes.draft
	if d.Subdomain != "web" || d.Port != 8080 || !d.NoWake || d.Auth.Mode != route.Basic || d.Auth.Username != "me" || d.Password != "correct horse" ||
		len(d.Allowed) != 1 || d.Allowed[0].String() != "192.0.2.0/24" || d.ResponseTimeout != time.Minute || d.Upstream != route.H2C {
		t.Errorf("asked for %+v", d)
	}
	if s.routes.caller.OwnerID != goodAcc || !s.routes.caller.Rights.Include(access.Admin) {
		t.Errorf("as %+v", s.routes.caller)
	}
	got := decode[api.Route](t, reply)
	if got.URL != "http://web.localhost" || got.Auth.Password != "" || strings.Contains(string(reply.body)+s.log.String(), "hidden") || strings.Contains(s.log.String(), "horse") {
		t.Errorf("answer %s", reply.body)
	}
	for body, code := range map[string]string{
		`{}`: "invalid_target_port",
		`{"target_port":8080,"allowed_cidrs":["x"]}`: "invalid_allowed_cidrs",
		`{"target_port":8080,"upstream":"h3"}`:       "invalid_upstream",
		`{"target_port":8080,"port":1}`:              "unknown_field",
	} {
		reply := s.call(t, "POST", "/vms/"+knownVM+"/routes", body)
		wantStatus(t, reply, 400)
		if got := reply.problem(t).Code; got != code {
			t.Errorf("%s: %s, want %s", body, got, code)
		}
	}
}

func TestUpdateRoute(t *testing.T) {
	s := newServer(t)
	for body, want := range map[string]func(route.Draft) bool{
		`{}`:                              func(d route.Draft) bool { return d.Port == 8080 && len(d.Allowed) == 1 },
		`{"target_port":81}`:              func(d route.Draft) bool { return d.Port == 81 && d.ResponseTimeout == time.Minute },
		`{"auth":{"mode":"key"}}`:         func(d route.Draft) bool { return d.Auth.Mode == route.Key && d.Auth.Username == "" },
		`{"auth":{"password":"another"}}`: func(d route.Draft) bool { return d.Auth.Mode == route.Basic && d.Password == "another" },
		`{"allowed_cidrs":null,"timeouts":null,"auto_wake":false}`: func(d route.Draft) bool {
			return d.Allowed == nil && d.ResponseTimeout == 0 && d.NoWake
		},
		`{"subdomain":"other"}`: func(d route.Draft) bool { return d.Subdomain == "other" && string(d.Auth.Hash) == "hidden" },
	} {
		wantStatus(t, s.call(t, "PATCH", "/routes/rt_1", body), 200)
		if !want(s.routes.draft) {
			t.Errorf("%s: %+v", body, s.routes.draft)
		}
	}
	for _, body := range []string{`{"vm_id":"vm_other"}`, `{"domain":"www.example.org"}`, `{"id":"rt_2"}`, `{"port":1}`} {
		wantStatus(t, s.call(t, "PATCH", "/routes/rt_1", body), 400)
	}
	r := s.request(t, "PATCH", "/routes/rt_1", `{}`)
	r.Header.Set("If-Match", `"other"`)
	wantStatus(t, s.send(t, r), 412)
}

func TestADomainShowsItsProof(t *testing.T) {
	s := newServer(t)
	s.routes.domain = true
	got := decode[api.Route](t, s.call(t, "GET", "/routes/rt_1", ""))
	if got.DomainState != api.DomainPending || got.Verification == nil || *got.Verification != (api.DomainVerification{Type: "TXT", Name: "_hatch.www.example.org", Value: "hatch-verification=x"}) {
		t.Errorf("%+v", got)
	}
}

func TestRoutesOfNewVMs(t *testing.T) {
	s := newServer(t)
	s.routes.leads = true
	reply := s.call(t, "POST", "/vms", `{"routes":[{"subdomain":"web","target_port":80},{"target_port":81,"auth":{"mode":"basic","username":"me","password":"correct horse"}}]}`)
	wantStatus(t, reply, 201)
	specs := s.vms.request.Routes
	if len(specs) != 2 || specs[0].Subdomain != "web" || specs[0].Auth.Mode != route.Public || specs[1].Auth.Hash == nil {
		t.Errorf("asked for %+v", specs)
	}
	wantStatus(t, s.call(t, "POST", "/vms", `{"routes":[{"domain":"www.example.org","target_port":80}]}`), 201)
	if got := s.vms.request; len(got.Routes) != 1 || got.Routes[0].Domain != "www.example.org" || !got.Rights.Include(access.Admin) {
		t.Errorf("asked for %+v", got)
	}
	if got := decode[api.CreatedVM](t, reply); len(got.Routes) != 1 || got.Routes[0].URL != "http://web.localhost" {
		t.Errorf("the answer has %+v", got.Routes)
	}
	for body, field := range map[string]string{
		`{"routes":[{"target_port":80},{"target_port":81,"subdomain":"api"}]}`:    "routes[1].subdomain",
		`{"routes":[{"target_port":80,"allowed_cidrs":["x"]}]}`:                   "routes[0].allowed_cidrs",
		`{"routes":[{"target_port":80,"domain":"x.localhost"}]}`:                  "routes[0].domain",
		`{"routes":[{"target_port":80}],"snapshot_id":"golden"}`:                  "routes",
		`{"routes":[{"target_port":80,"auth":{"mode":"basic","username":"me"}}]}`: "routes[0].auth.password",
	} {
		reply := s.call(t, "POST", "/vms", body)
		wantStatus(t, reply, 400)
		if p := reply.problem(t); p.Field != field {
			t.Errorf("%s: %+v, want the field %s", body, p, field)
		}
	}
}

// A client may send back the VM as it has read it, with its routes.
func TestRoutesOfAVMAreShown(t *testing.T) {
	s := newServer(t)
	s.routes.leads = true
	reply := s.call(t, "GET", "/vms/"+knownVM, "")
	if got := decode[api.VM](t, reply); len(got.Routes) != 1 || got.Routes[0].ID != "rt_1" {
		t.Errorf("%s", reply.body)
	}
	wantStatus(t, s.call(t, "PATCH", "/vms/"+knownVM, string(reply.body)), 200)
	wantStatus(t, s.call(t, "PATCH", "/vms/"+knownVM, `{"routes":[]}`), 400)
}

func TestRoutesOfTemplates(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "POST", "/templates", `{"name":"small","routes":[{"target_port":80,"auth":{"mode":"basic","username":"me","password":"correct horse"}}]}`), 201)
	if made := s.templates.made.Routes; len(made) != 1 || made[0].Auth.Hash == nil {
		t.Errorf("made %+v", made)
	}
}

func TestClientRoutes(t *testing.T) {
	s := newServer(t)
	s.routes.leads = true
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if r, err := c.CreateRoute(ctx, knownVM, api.CreateRoute{TargetPort: 80}); err != nil || r.ID != "rt_1" || s.routes.draft.Port != 80 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, list := range []func() ([]api.Route, error){
		func() ([]api.Route, error) { return c.ListRoutes(ctx) },
		func() ([]api.Route, error) { return c.RoutesOf(ctx, knownVM) },
	} {
		if all, err := list(); err != nil || len(all) != 1 {
			t.Errorf("%+v, %v", all, err)
		}
	}
	if r, err := c.GetRoute(ctx, "rt_1"); err != nil || r.Subdomain != "web" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.UpdateRoute(ctx, "rt_1", api.UpdateRoute{TargetPort: new(82)}); err != nil || s.routes.draft.Port != 82 {
		t.Errorf("%+v, %v", s.routes.draft, err)
	}
	if _, err := c.VerifyRoute(ctx, "rt_1"); err != nil {
		t.Error(err)
	}
	if share, err := c.ShareVM(ctx, knownVM, api.ShareVM{Port: 3000}); err != nil || s.routes.life != time.Hour || !share.ExpiresAt.Equal(began.Add(time.Hour).Truncate(time.Millisecond)) {
		t.Errorf("%+v, %v", share, err)
	}
	if _, err := c.ShareVM(ctx, knownVM, api.ShareVM{Port: 3000, ExpiresInSeconds: 90}); err != nil || s.routes.life != 90*time.Second {
		t.Errorf("%v, %v", s.routes.life, err)
	}
	if err := c.EndShares(ctx, knownVM); err != nil || s.routes.ended != knownVM {
		t.Error(err)
	}
	if err := c.DeleteRoute(ctx, "rt_none"); !client.IsNotFound(err) {
		t.Error(err)
	}
	for _, err := range []error{c.EndShares(ctx, ".."), func() error { _, err := c.RoutesOf(ctx, ".."); return err }()} {
		if err == nil {
			t.Error("an odd id was sent")
		}
	}
}
