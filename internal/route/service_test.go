package route_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

// world is a service with what it needs, for one test.
type world struct {
	*route.Service
	cfg   route.Config
	store *memory
	dns   map[string][]string // TXT records
	down  error               // of the DNS
	now   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		store: &memory{vms: []route.VM{{ID: "vm_a", OwnerID: "acc_a"}, {ID: "vm_b", OwnerID: "acc_b"}}, names: map[string]string{"one": "vm_a"}},
		dns:   map[string][]string{}, now: time.Unix(1_800_000_000, 0),
	}
	w.cfg = route.Config{
		Log:   slog.New(slog.DiscardHandler),
		Store: w.store, Keys: keys{}, DNS: w, Domain: "localhost", Implicit: true,
		URL: func(host string) string { return "http://" + host + ":9090" }, Now: func() time.Time { return w.now },
	}
	w.open(t)
	return w
}

func (w *world) open(t *testing.T) {
	t.Helper()
	s, err := route.Open(t.Context(), w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Service = s
}

func (w *world) LookupTXT(_ context.Context, name string) ([]string, error) {
	if w.down != nil {
		return nil, w.down
	}
	if found, ok := w.dns[name]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

// add makes a route to vm_a by a caller with all rights.
func (w *world) add(t *testing.T, d route.Draft) route.Route {
	t.Helper()
	r, err := w.Create(t.Context(), caller("acc_a", access.AllRights), "vm_a", d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func caller(owner string, rights access.Rights) access.Principal {
	return access.Principal{OwnerID: owner, Rights: rights}
}

// keys are secrets of the form "key of ACCOUNT".
type keys struct{}

func (keys) Watch(ctx context.Context, _ access.Principal) (context.Context, func()) {
	return ctx, func() {}
}

// Known knows "known key of ACCOUNT", which Authenticate does not.
func (keys) Known(secret string, _ netip.Addr) (access.Principal, bool) {
	owner, known := strings.CutPrefix(secret, "known key of ")
	return caller(owner, access.AllRights), known
}

func (keys) Authenticate(_ context.Context, secret string, _ netip.Addr) (access.Principal, error) {
	if secret == "database is down" {
		return access.Principal{}, errors.New(secret)
	}
	if owner, ok := strings.CutPrefix(secret, "key of "); ok {
		return caller(owner, access.AllRights), nil
	}
	if secret == "reader" {
		return caller("acc_a", access.RightsOf(access.Read(access.Exec))), nil
	}
	return access.Principal{}, errs.New(errs.Unauthenticated, "invalid_api_key", "no")
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	web := w.add(t, route.Draft{Spec: route.Spec{Subdomain: "web", Port: 80, NoWake: true, Upstream: route.H2C, ResponseTimeout: time.Second, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}})
	own := w.add(t, route.Draft{Spec: route.Spec{Domain: "www.example.org", Port: 81}})
	for host, want := range map[string]string{
		"web.localhost": web.ID, "WEB.LocalHost:9090": web.ID, "web.localhost.": web.ID, "web.localhost.:9090": web.ID,
		"www.example.org": own.ID, "Www.Example.Org.:443": own.ID,
		"80-one.localhost": "80", "65535-one.localhost": "65535", "8080-vm-a.localhost": "8080", "8080-vm_a.localhost:1": "8080",
		"": "", "localhost": "", ".localhost": "", "api.localhost": "", "web.localhost..": "", "a.web.localhost": "", "web": "", "web.localhost.evil.org": "",
		"xlocalhost": "", "example.org": "", "0-one.localhost": "", "65536-one.localhost": "", "080-one.localhost": "", "99999999999999999999-one.localhost": "",
		"80-none.localhost": "", "80-.localhost": "", "80.localhost": "", "127.0.0.1:80": "", "[::1]:80": "", "we\x00b.localhost": "", "wéb.localhost": "",
		strings.Repeat("a.", 200) + "localhost": "", "web.localhost:": web.ID, "web.localhost:80a": "", "web.localhost:000080": "", "web.localhost:/evil": "",
	} {
		for range 2 { // from the store, and from memory
			got, err := w.Resolve(t.Context(), host)
			if certified := w.Certifies(t.Context(), host) == nil; certified != strings.HasPrefix(want, route.IDPrefix) {
				t.Errorf("%q has a certificate: %t", host, certified)
			}
			switch {
			case want == "" && !errors.Is(err, route.ErrUnknown):
				t.Errorf("%q leads to %+v, %v", host, got, err)
			case want == "":
			case err != nil:
				t.Errorf("%q: %v", host, err)
			case strings.HasPrefix(want, route.IDPrefix) && got.RouteID != want:
				t.Errorf("%q leads to %+v, want %s", host, got, want)
			case !strings.HasPrefix(want, route.IDPrefix) && (got.RouteID != "" || got.VMID != "vm_a" || got.Auth.Mode != route.Key || !got.AutoWake || want != strings.SplitN(host, "-", 2)[0]):
				t.Errorf("%q leads to %+v", host, got)
			}
		}
	}
	got, err := w.Resolve(t.Context(), "web.localhost")
	if err != nil || got.VMID != "vm_a" || got.OwnerID != "acc_a" || got.Port != 80 || got.AutoWake || got.Auth.Mode != route.Public ||
		got.Upstream != route.H2C || got.ResponseTimeout != time.Second || len(got.Allowed) != 1 {
		t.Errorf("the target is %+v, %v", got, err)
	}
}

func TestImplicitNamesCanBeOff(t *testing.T) {
	w := newWorld(t)
	w.cfg.Implicit = false
	w.open(t)
	if got, err := w.Resolve(t.Context(), "80-vm-a.localhost"); !errors.Is(err, route.ErrUnknown) {
		t.Errorf("leads to %+v, %v", got, err)
	}
}

// Names are looked up once, until something changes that they may follow.
func TestResolveKeepsNames(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	r := w.add(t, route.Draft{Spec: route.Spec{Subdomain: "web", Port: 80}})
	for range 3 {
		for _, host := range []string{"web.localhost", "other.localhost", "80-one.localhost"} {
			_, _ = w.Resolve(ctx, host)
		}
	}
	if w.store.lookups != 3 {
		t.Errorf("%d look-ups of 3 names", w.store.lookups)
	}
	_, err := w.Update(ctx, access.Owner("acc_a"), r.ID, func(r route.Route) (route.Draft, error) {
		r.Port, r.Subdomain = 81, "other"
		return route.Draft{Spec: r.Spec}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.Resolve(ctx, "web.localhost"); !errors.Is(err, route.ErrUnknown) {
		t.Errorf("the former name leads to %+v, %v", got, err)
	}
	if got, err := w.Resolve(ctx, "other.localhost"); err != nil || got.Port != 81 {
		t.Errorf("the new name leads to %+v, %v", got, err)
	}
	w.store.onLookup = func() { w.store.version++ } // a change while the name is looked up
	for range 2 {
		_, _ = w.Resolve(ctx, "one-more.localhost")
	}
	if w.store.lookups != 7 {
		t.Errorf("%d look-ups, want 7: what was read before a change is kept", w.store.lookups)
	}
}

func TestAStoreThatFailsIsNoUnknownName(t *testing.T) {
	w := newWorld(t)
	w.store.fails = errors.New("no database")
	if _, err := w.Resolve(t.Context(), "web.localhost"); !errors.Is(err, w.store.fails) {
		t.Errorf("error %v", err)
	}
}

func TestAuthorize(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.add(t, route.Draft{Spec: route.Spec{Subdomain: "public", Port: 80}})
	w.add(t, route.Draft{Spec: route.Spec{Subdomain: "key", Port: 80, Auth: route.Auth{Mode: route.Key}}})
	w.add(t, route.Draft{Spec: route.Spec{Subdomain: "basic", Port: 80, Auth: route.Auth{Mode: route.Basic, Username: "me"}}, Password: "correct horse"})
	none, owner, other := route.Credentials{}, route.Credentials{Key: "key of acc_a"}, route.Credentials{Key: "key of acc_b"}
	for _, c := range []struct {
		host  string
		shown route.Credentials
		code  string // "": allowed
	}{
		{"public.localhost", none, ""},
		{"key.localhost", owner, ""},
		{"key.localhost", none, "credentials_required"},
		{"key.localhost", other, "credentials_required"},
		{"key.localhost", route.Credentials{Key: "wrong"}, "credentials_required"},
		{"key.localhost", route.Credentials{Key: "reader"}, "credentials_required"},
		{"key.localhost", route.Credentials{Username: "me", Password: "correct horse"}, "credentials_required"},
		{"basic.localhost", route.Credentials{Username: "me", Password: "correct horse"}, ""},
		{"basic.localhost", route.Credentials{Username: "me", Password: "correct horse"}, ""}, // from memory
		{"basic.localhost", route.Credentials{Username: "me", Password: "wrong"}, "credentials_required"},
		{"basic.localhost", route.Credentials{Username: "you", Password: "correct horse"}, "credentials_required"},
		{"basic.localhost", route.Credentials{Username: "me", Password: "correct horse" + strings.Repeat("x", 99)}, "credentials_required"},
		{"basic.localhost", owner, "credentials_required"},
		{"80-one.localhost", owner, ""},
		{"80-one.localhost", none, "unknown_host"},
		{"80-one.localhost", other, "unknown_host"},
		{"80-one.localhost", route.Credentials{Token: "x", Cookie: "y"}, "unknown_host"},
	} {
		target, err := w.Resolve(ctx, c.host)
		if err != nil {
			t.Fatal(err)
		}
		grant, err := w.Authorize(ctx, target, c.shown)
		if by := grant.Caller; err == nil && (by != nil) != (c.shown.Key != "" && target.Auth.Mode == route.Key) {
			t.Errorf("%s with %+v: granted to %+v", c.host, c.shown, by)
		}
		grant.Caller = nil
		if c.code == "" && (err != nil || grant.Cookie != "") || c.code != "" && !errs.HasCode(err, c.code) {
			t.Errorf("%s with %+v: %+v, %v, want code %q", c.host, c.shown, grant, err, c.code)
		}
	}
	target, err := w.Resolve(ctx, "key.localhost")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Authorize(ctx, target, route.Credentials{Key: "database is down"}); errs.KindOf(err) != errs.Internal {
		t.Errorf("a key that cannot be looked up: %v", err)
	}
}

// share returns the host and the token of a signed link to port 80 of vm_a, for an hour.
func (w *world) share(t *testing.T) (host, token string) {
	t.Helper()
	link, until, err := w.Share(t.Context(), access.Owner("acc_a"), "vm_a", 80, time.Hour)
	if err != nil || !until.Equal(w.now.Add(time.Hour)) {
		t.Fatalf("until %v, %v", until, err)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, u.Query().Get(route.TokenParam)
}

func (w *world) follow(t *testing.T, host string, c route.Credentials) (route.Grant, error) {
	t.Helper()
	target, err := w.Resolve(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	return w.Authorize(t.Context(), target, c)
}

func TestASignedLinkAndItsCookie(t *testing.T) {
	w := newWorld(t)
	host, token := w.share(t)
	if host != "80-vm-a.localhost:9090" {
		t.Errorf("the link leads to %s", host)
	}
	grant, err := w.follow(t, host, route.Credentials{Token: token})
	if err != nil || grant.Cookie == "" || !grant.Until.Equal(w.now.Add(time.Hour)) {
		t.Fatalf("%+v, %v", grant, err)
	}
	byCookie := route.Credentials{Cookie: grant.Cookie}
	if g, err := w.follow(t, host, byCookie); err != nil || g.Cookie != "" {
		t.Errorf("with the cookie: %+v, %v", g, err)
	}
	for what, c := range map[string]route.Credentials{"a cookie as token": {Token: grant.Cookie}, "a token as cookie": {Cookie: token}} {
		if _, err := w.follow(t, host, c); !errors.Is(err, route.ErrUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := w.follow(t, "81-vm-a.localhost", byCookie); !errors.Is(err, route.ErrUnknown) {
		t.Errorf("at another port: %v", err)
	}
	if _, err := w.follow(t, "80-vm-b.localhost", byCookie); !errors.Is(err, route.ErrUnknown) {
		t.Errorf("at another VM: %v", err)
	}
	w.now = w.now.Add(time.Hour)
	for _, c := range []route.Credentials{{Token: token}, byCookie} {
		if _, err := w.follow(t, host, c); !errs.HasCode(err, "link_ended") {
			t.Errorf("after its end: %v", err)
		}
	}
}

func TestLinksCanBeEnded(t *testing.T) {
	w := newWorld(t)
	host, token := w.share(t)
	if err := w.EndLinks(t.Context(), access.Owner("acc_a"), "vm_a"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.follow(t, host, route.Credentials{Token: token}); !errs.HasCode(err, "link_ended") {
		t.Errorf("an ended link: %v", err)
	}
	host, token = w.share(t)
	if _, err := w.follow(t, host, route.Credentials{Token: token}); err != nil {
		t.Errorf("a new link: %v", err)
	}
}

// Where implicit names are off, a link leads to a route.
func TestALinkToARoute(t *testing.T) {
	w := newWorld(t)
	w.cfg.Implicit = false
	w.open(t)
	_, _, err := w.Share(t.Context(), access.Owner("acc_a"), "vm_a", 80, time.Hour)
	if !errs.HasCode(err, "no_name") {
		t.Errorf("without a route: %v", err)
	}
	w.add(t, route.Draft{Spec: route.Spec{Subdomain: "key", Port: 80, Auth: route.Auth{Mode: route.Key}}})
	w.add(t, route.Draft{Spec: route.Spec{Subdomain: "all", Port: 80}}) // newer
	host, token := w.share(t)
	if _, err := w.follow(t, host, route.Credentials{Token: token}); err != nil || host != "key.localhost:9090" {
		t.Errorf("%s: %v", host, err)
	}
}

func TestShareRefuses(t *testing.T) {
	w, ctx, owner := newWorld(t), t.Context(), access.Owner("acc_a")
	for _, c := range []struct {
		vm   string
		port int
		life time.Duration
		code string
	}{
		{"vm_a", 0, time.Hour, "invalid_port"},
		{"vm_a", 80, time.Second, "invalid_expires_in_seconds"},
		{"vm_a", 80, 31 * 24 * time.Hour, "invalid_expires_in_seconds"},
		{"vm_b", 80, time.Hour, "vm_not_found"},
	} {
		if _, _, err := w.Share(ctx, owner, c.vm, c.port, c.life); !errs.HasCode(err, c.code) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestADomainIsServedOnceProved(t *testing.T) {
	w, ctx, owner := newWorld(t), t.Context(), access.Owner("acc_a")
	r, err := w.Create(ctx, caller("acc_a", access.RightsOf(access.Write(access.Routes))), "vm_a", route.Draft{Spec: route.Spec{Domain: "www.example.org", Port: 80}})
	if err != nil || r.Served() {
		t.Fatalf("%+v, %v", r, err)
	}
	resolves := func() bool { _, err := w.Resolve(ctx, "www.example.org"); return err == nil }
	if resolves() {
		t.Error("an unproved domain is served")
	}
	for _, c := range []struct {
		records []string
		down    error
		code    string
	}{
		{nil, nil, "domain_unproven"},
		{[]string{"v=spf1", r.Proof + "x"}, nil, "domain_unproven"},
		{nil, errors.New("timeout"), "dns_unavailable"},
		{[]string{"v=spf1", r.Proof}, nil, ""},
	} {
		w.down = c.down
		if c.records != nil {
			w.dns["_hatch.www.example.org"] = c.records
		}
		got, err := w.Verify(ctx, owner, r.ID)
		if c.code != "" && !errs.HasCode(err, c.code) || c.code == "" && (err != nil || !got.Served()) {
			t.Errorf("%q: %+v, %v, want code %q", c.records, got, err, c.code)
		}
		if resolves() != (c.code == "") {
			t.Errorf("after %q the domain is served, or not any more", c.records)
		}
	}
	if _, err := w.Verify(ctx, access.Owner("acc_b"), r.ID); !errs.HasCode(err, "route_not_found") {
		t.Errorf("by another owner: %v", err)
	}
	sub := w.add(t, route.Draft{Spec: route.Spec{Port: 80}})
	if _, err := w.Verify(ctx, owner, sub.ID); !errs.HasCode(err, "no_domain") {
		t.Errorf("of a subdomain: %v", err)
	}
	for _, name := range []string{"localhost", "x.localhost"} {
		w.cfg.Domain = "apps.example.org"
		w.open(t)
		name = strings.Replace(name, "localhost", w.cfg.Domain, 1)
		_, err := w.Create(ctx, caller("acc_a", access.AllRights), "vm_a", route.Draft{Spec: route.Spec{Domain: name, Port: 80}})
		if !errs.HasCode(err, "invalid_domain") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpdate(t *testing.T) {
	w, ctx, owner := newWorld(t), t.Context(), access.Owner("acc_a")
	r := w.add(t, route.Draft{Spec: route.Spec{Subdomain: "web", Port: 80}})
	change := func(do func(*route.Spec)) error {
		_, err := w.Update(ctx, owner, r.ID, func(r route.Route) (route.Draft, error) {
			do(&r.Spec)
			return route.Draft{Spec: r.Spec}, nil
		})
		return err
	}
	for code, do := range map[string]func(*route.Spec){
		"invalid_subdomain":   func(s *route.Spec) { s.Subdomain = "" },
		"invalid_target_port": func(s *route.Spec) { s.Port = 0 },
		"invalid_auth":        func(s *route.Spec) { s.Auth = route.Auth{Mode: route.Basic, Username: "me"} },
	} {
		if err := change(do); !errs.HasCode(err, code) {
			t.Errorf("%v, want %s", err, code)
		}
	}
	// Another request comes first, each time.
	calls := 0
	w.store.onUpdate = func(r *route.Route) { r.UpdatedAt = r.UpdatedAt.Add(time.Second); calls++ }
	if err := change(func(s *route.Spec) { s.Port = 81 }); !errs.HasCode(err, "route_changed") || calls != 3 {
		t.Errorf("after %d attempts: %v", calls, err)
	}
	w.store.onUpdate = nil
	if err := change(func(s *route.Spec) { s.Port = 82 }); err != nil || w.store.routes[0].Port != 82 {
		t.Errorf("%v, %+v", err, w.store.routes[0])
	}
}

// A key that has authenticated before costs no look-up.
func TestKnownKeys(t *testing.T) {
	w := newWorld(t)
	target := route.Target{VMID: "vm_a", OwnerID: "acc_a", RouteID: "rt_1", Auth: route.Auth{Mode: route.Key}}
	got, err := w.Authorize(t.Context(), target, route.Credentials{Key: "known key of acc_a"})
	if err != nil || got.Caller == nil || got.Caller.OwnerID != "acc_a" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Requests in progress, which may be streams, end with what they were granted.
func TestGrantsEndRequests(t *testing.T) {
	w, ctx, owner := newWorld(t), t.Context(), access.Owner("acc_a")
	host, token := w.share(t)
	byLink, err := w.follow(t, host, route.Credentials{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	r := w.add(t, route.Draft{Spec: route.Spec{Subdomain: "all", Port: 80}})
	public, err := w.follow(t, "all.localhost", route.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	linked, stopLinked := w.Watch(ctx, byLink)
	defer stopLinked()
	open, stopOpen := w.Watch(ctx, public)
	defer stopOpen()
	byLink.Until = w.Now().Add(-time.Second)
	late, stopLate := w.Watch(ctx, byLink)
	defer stopLate()
	<-late.Done()
	if linked.Err() != nil || open.Err() != nil {
		t.Fatal("requests end too early")
	}
	if err := w.EndLinks(ctx, owner, "vm_a"); err != nil || linked.Err() == nil || open.Err() != nil {
		t.Errorf("after the end of links: %v, %v, %v", err, linked.Err(), open.Err())
	}
	if err := w.Delete(ctx, owner, r.ID, func(route.Route) error { return nil }); err != nil || open.Err() == nil {
		t.Errorf("after the end of the route: %v, %v", err, open.Err())
	}
}
