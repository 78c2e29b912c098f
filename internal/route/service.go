package route

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// Resolver looks up DNS records.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// Keys authenticates callers by their API key.
type Keys interface {
	// Known is Authenticate without a look-up, for keys that have authenticated before.
	Known(secret string, from netip.Addr) (caller access.Principal, known bool)
	// Authenticate returns the caller at an address. Errors: errs.Unauthenticated.
	Authenticate(ctx context.Context, secret string, from netip.Addr) (access.Principal, error)
	// Watch returns a context that also ends when the caller's key does.
	Watch(ctx context.Context, caller access.Principal) (watched context.Context, stop func())
}

// Config has the settings and dependencies of a service. All fields are required.
type Config struct {
	Store  Store
	Keys   Keys
	DNS    Resolver
	Domain string // of the proxy: routes' subdomains are below it
	// Implicit is whether names without a route, PORT-VM, lead to VMs whose owners have
	// not decided.
	Implicit bool
	// URL returns the URL of a host name, as clients reach the proxy.
	URL func(host string) string
	Now func() time.Time
	Log *slog.Logger
}

// Service manages routes, and decides for doors where host names lead.
type Service struct {
	Config
	secret []byte // of signed links

	lookups chan struct{} // capacity lookupsAtOnce
	hashes  chan struct{} // capacity hashesAtOnce

	mu        sync.Mutex
	names     names
	followers map[*follower]struct{}

	passwords passwords
}

// How much of the host callers without credentials can use at a time.
const (
	lookupsAtOnce = 4 // of names in the database
	hashesAtOnce  = 1 // of passwords; each takes a CPU for some 50 ms
)

// Open returns a service. The first one of a database makes the secret of signed links.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails; see crypto/rand
	secret, err := cfg.Store.LinkSecret(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return &Service{
		Config: cfg, secret: secret, names: newNames(), followers: map[*follower]struct{}{}, passwords: passwords{by: map[digest]struct{}{}, trying: map[string]int{}},
		lookups: make(chan struct{}, lookupsAtOnce), hashes: make(chan struct{}, hashesAtOnce),
	}, nil
}

// Create makes a route to a VM in the caller's scope. A caller with the right Admin need
// not prove a domain. Errors: errs.Invalid names the field; errs.NotFound; errs.Conflict.
func (s *Service) Create(ctx context.Context, caller access.Principal, vmID string, d Draft) (Route, error) {
	spec, err := s.decide(d)
	if err != nil {
		return Route{}, err
	}
	r := New(caller.OwnerID, vmID, spec)
	if caller.Rights.Include(access.Admin) {
		r = r.Proved()
	}
	return s.Store.InsertRoute(ctx, caller.Scope(), r, MaxPerVM)
}

// decide is Decide for a name that is not the proxy's own.
func (s *Service) decide(d Draft) (Spec, error) {
	spec, err := d.Decide()
	if err == nil && (spec.Domain == s.Domain || strings.HasSuffix(spec.Domain, "."+s.Domain)) {
		err = errs.InvalidField("domain", "%q is the proxy's own domain, or below it; give subdomain instead", spec.Domain)
	}
	return spec, err
}

// DecideAll checks the routes of a new VM or of a template, which are made without
// Create, and fills in their defaults. Errors: errs.Invalid names the field.
func (s *Service) DecideAll(drafts []Draft) ([]Spec, error) {
	if len(drafts) > MaxPerVM {
		return nil, errs.InvalidField("routes", "are %d; a VM can have %d", len(drafts), MaxPerVM)
	}
	specs := make([]Spec, len(drafts))
	for i, d := range drafts {
		spec, err := s.decide(d)
		if err != nil {
			return nil, InList(i, err)
		}
		same := func(other Spec) bool { return other.Subdomain == spec.Subdomain && other.Domain == spec.Domain }
		if spec.Label() != "" && slices.ContainsFunc(specs[:i], same) {
			field := "subdomain"
			if spec.Domain != "" {
				field = "domain"
			}
			return nil, InList(i, errs.InvalidField(field, "%q is given twice", spec.Label()))
		}
		specs[i] = spec
	}
	return specs, nil
}

// Get returns one route. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, scope access.Scope, id string) (Route, error) {
	return s.Store.Route(ctx, scope, id)
}

// List returns the routes to a VM, "" for all VMs in scope, newest first. Errors:
// errs.NotFound with code vm_not_found.
func (s *Service) List(ctx context.Context, scope access.Scope, vmID string) ([]Route, error) {
	if vmID != "" {
		if _, err := s.Store.LinkedVM(ctx, scope, vmID); err != nil {
			return nil, err
		}
	}
	return s.Store.Routes(ctx, scope, vmID)
}

// Of returns the routes to a VM that the caller has just read, newest first.
func (s *Service) Of(ctx context.Context, scope access.Scope, vmID string) ([]Route, error) {
	return s.Store.Routes(ctx, scope, vmID)
}

// updateAttempts bounds the attempts of an update that others come before.
const updateAttempts = 3

// Update changes what a route says, unless change returns an error. A domain stays.
// change may run more than once.
func (s *Service) Update(ctx context.Context, scope access.Scope, id string, change func(Route) (Draft, error)) (r Route, err error) {
	for range updateAttempts {
		if r, err = s.update(ctx, scope, id, change); !errs.HasCode(err, "route_changed") {
			return r, err
		}
	}
	return r, err
}

// update decides before the transaction, which the hash of a password would prolong.
func (s *Service) update(ctx context.Context, scope access.Scope, id string, change func(Route) (Draft, error)) (Route, error) {
	was, err := s.Store.Route(ctx, scope, id)
	if err != nil {
		return Route{}, err
	}
	draft, err := change(was)
	if err != nil {
		return Route{}, err
	}
	if draft.Subdomain == "" && was.Domain == "" {
		return Route{}, errs.InvalidField("subdomain", "cannot be removed; give another, or delete the route")
	}
	spec, err := draft.Decide()
	if err != nil {
		return Route{}, err
	}
	r, err := s.Store.UpdateRoute(ctx, scope, id, func(r *Route) error {
		if !r.UpdatedAt.Equal(was.UpdatedAt) {
			return errs.New(errs.Conflict, "route_changed", "cannot change the route: other requests change it meanwhile").WithHint("try again")
		}
		r.Spec = spec
		return nil
	})
	if err == nil {
		s.endThose(func(g Grant) bool { return g.routeID == id })
	}
	return r, err
}

// Delete removes a route, unless check returns an error for it.
func (s *Service) Delete(ctx context.Context, scope access.Scope, id string, check func(Route) error) error {
	err := s.Store.DeleteRoute(ctx, scope, id, check)
	if err == nil {
		s.endThose(func(g Grant) bool { return g.routeID == id })
	}
	return err
}

// Address returns the URL of a route.
func (s *Service) Address(r Route) string { return s.URL(s.host(r)) }

func (s *Service) host(r Route) string {
	if r.Domain != "" {
		return r.Domain
	}
	return r.Subdomain + "." + s.Domain
}

// Bounds of a signed link's life.
const (
	MinShare = time.Minute
	MaxShare = 30 * 24 * time.Hour
)

// Share returns a signed link to a port of a VM, and when it ends. Errors: errs.Invalid;
// errs.NotFound; errs.Conflict with code no_name if no host name leads to the port.
func (s *Service) Share(ctx context.Context, scope access.Scope, vmID string, port int, life time.Duration) (url string, until time.Time, err error) {
	switch {
	case port < 1 || port > 65535:
		return "", until, errs.InvalidField("port", "%d is not a port; want 1 to 65535", port)
	case life < MinShare || life > MaxShare:
		return "", until, errs.InvalidField("expires_in_seconds", "%g is out of range; want %g to %g", life.Seconds(), MinShare.Seconds(), MaxShare.Seconds())
	}
	v, err := s.Store.LinkedVM(ctx, scope, vmID)
	if err != nil {
		return "", until, err
	}
	host, err := s.hostOf(ctx, scope, v, port)
	if err != nil {
		return "", until, err
	}
	until = s.Now().Add(life).UTC().Truncate(time.Second)
	l := link{kind: linkKind, until: until, port: port, generation: v.Generation}
	return s.URL(host) + "/?" + TokenParam + "=" + l.sign(s.secret, v.ID), until, nil
}

// hostOf returns a host name that leads to a port of a VM, and needs credentials: one that
// is public would leave the token in the URL.
func (s *Service) hostOf(ctx context.Context, scope access.Scope, v VM, port int) (string, error) {
	if v.Implicit.allowed(s.Implicit) {
		return fmt.Sprintf("%d-%s.%s", port, strings.ReplaceAll(v.ID, "_", "-"), s.Domain), nil
	}
	routes, err := s.Store.Routes(ctx, scope, v.ID)
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		if r.Port == port && r.Auth.Mode != Public && r.Served() {
			return s.host(r), nil
		}
	}
	return "", errs.New(errs.Conflict, "no_name", "no host name leads to port %d of the VM", port).
		WithHint("make a route to the port that is not public: POST /vms/{id}/routes; or give the VM implicit_routes: true")
}

// EndLinks ends all signed links to a VM, the cookies that followed them, and the requests
// in progress of both.
func (s *Service) EndLinks(ctx context.Context, scope access.Scope, vmID string) error {
	err := s.Store.EndLinks(ctx, scope, vmID)
	if err == nil {
		s.endThose(func(g Grant) bool { return g.byLink && g.vmID == vmID })
	}
	return err
}
