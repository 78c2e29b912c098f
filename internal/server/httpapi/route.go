package httpapi

import (
	"cmp"
	"context"
	"net/url"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	hostroute "github.com/hatchvm/hatch/internal/route" // route is a line of the table
)

const createRouteText = `Make a host name that leads to a port of a VM: a subdomain of the proxy's domain, or a domain of your own. ` +
	`A domain is served at once if the key has the scope admin; otherwise once it is proved, by the TXT record that verification shows, and POST /routes/{id}/verify.`

const shareText = `Return a signed link to a port of a VM. Each browser that opens it reaches the port, with no key, until the link expires or DELETE /vms/{id}/share ends it. ` +
	`It needs no route, unless HATCH_PROXY_IMPLICIT is off. Nothing is stored.`

// Routes manages routes. [hostroute.Service] implements it.
type Routes interface {
	Create(ctx context.Context, caller access.Principal, vmID string, d hostroute.Draft) (hostroute.Route, error)
	// DecideAll checks the routes of a new VM or of a template.
	DecideAll(drafts []hostroute.Draft) ([]hostroute.Spec, error)
	// Update and Delete change nothing if their function returns an error.
	Update(ctx context.Context, scope access.Scope, id string, change func(hostroute.Route) (hostroute.Draft, error)) (hostroute.Route, error)
	Delete(ctx context.Context, scope access.Scope, id string, check func(hostroute.Route) error) error
	Verify(ctx context.Context, scope access.Scope, id string) (hostroute.Route, error)

	RouteReader
	Sharer
}

// RouteReader reads routes.
type RouteReader interface {
	Get(ctx context.Context, scope access.Scope, id string) (hostroute.Route, error)
	// List returns the routes to a VM, "" for all VMs.
	List(ctx context.Context, scope access.Scope, vmID string) ([]hostroute.Route, error)
	// Of is List for a VM that exists.
	Of(ctx context.Context, scope access.Scope, vmID string) ([]hostroute.Route, error)
	// Address returns the URL of a route.
	Address(r hostroute.Route) string
}

// Sharer manages signed links.
type Sharer interface {
	Share(ctx context.Context, scope access.Scope, vmID string, port int, life time.Duration) (link string, until time.Time, err error)
	EndLinks(ctx context.Context, scope access.Scope, vmID string) error
}

type routeHandlers struct {
	*door
	leading Routes
}

type createRouteInput struct {
	IDPath
	Body api.CreateRoute
}

func (h *routeHandlers) create(ctx context.Context, in *createRouteInput) (*created[api.Route], error) {
	draft, err := routeDraft(in.Body)
	if err != nil {
		return nil, err
	}
	r, err := h.leading.Create(ctx, callerOf(ctx).Principal, in.ID, draft)
	if err != nil {
		return nil, err
	}
	return &created[api.Route]{Location: "/routes/" + r.ID, Body: shownRoute(h.leading, r)}, nil
}

type listVMRoutesInput struct {
	IDPath
	PageInput
}

func (h *routeHandlers) listOfVM(ctx context.Context, in *listVMRoutesInput) (*paged[api.Route], error) {
	return h.page(ctx, in.ID, "/vms/"+url.PathEscape(in.ID)+"/routes", in.PageInput)
}

func (h *routeHandlers) list(ctx context.Context, in *PageInput) (*paged[api.Route], error) {
	return h.page(ctx, "", "/routes", *in)
}

func (h *routeHandlers) page(ctx context.Context, vmID, path string, in PageInput) (*paged[api.Route], error) {
	routes, err := h.leading.List(ctx, scope(ctx), vmID)
	if err != nil {
		return nil, err
	}
	return list[hostroute.Route, api.Route]{
		all: routes, path: path, show: func(r hostroute.Route) api.Route { return shownRoute(h.leading, r) },
		at: func(r hostroute.Route) position { return position{r.CreatedAt, r.ID} },
	}.page(in)
}

func (h *routeHandlers) get(ctx context.Context, in *ConditionalIDPath) (*tagged[api.Route], error) {
	r, err := h.leading.Get(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return withTag(in.Conditions, shownRoute(h.leading, r), r.UpdatedAt)
}

func (h *routeHandlers) update(ctx context.Context, in *patchInput) (*tagged[api.Route], error) {
	r, err := h.leading.Update(ctx, scope(ctx), in.ID, func(r hostroute.Route) (hostroute.Draft, error) {
		shown := shownRoute(h.leading, r)
		if err := in.allowObject(shown, r.UpdatedAt); err != nil {
			return hostroute.Draft{}, err
		}
		after, err := patched[api.UpdateRoute](h.door, shown, in.RawBody, []string{"subdomain", "target_port", "auto_wake", "auth", "allowed_cidrs", "timeouts", "upstream"}, fixedRouteFields)
		if err != nil {
			return hostroute.Draft{}, err
		}
		if after.Auth.Mode != api.AuthBasic && after.Auth.Username == shown.Auth.Username {
			after.Auth.Username = "" // it was the former mode's
		}
		draft, err := routeDraft(api.CreateRoute{
			Subdomain: after.Subdomain, Domain: after.Domain, TargetPort: after.TargetPort, AutoWake: &after.AutoWake, Auth: &after.Auth,
			AllowedCIDRs: after.AllowedCIDRs, Timeouts: after.Timeouts, Upstream: after.Upstream,
		})
		draft.Auth.Hash = r.Auth.Hash
		return draft, err
	})
	if err != nil {
		return nil, err
	}
	return withTag(Conditions{}, shownRoute(h.leading, r), r.UpdatedAt)
}

// fixedRouteFields says why some fields of a route cannot be changed.
var fixedRouteFields = map[string]string{
	"domain": "it belongs to the proof; make a route for the other",
	"vm_id":  "make a route to the other VM",
}

func (h *routeHandlers) delete(ctx context.Context, in *ConditionalIDPath) (*answer[api.Deleted], error) {
	err := h.leading.Delete(ctx, scope(ctx), in.ID, func(r hostroute.Route) error {
		return in.allowObject(shownRoute(h.leading, r), r.UpdatedAt)
	})
	if err != nil {
		return nil, err
	}
	return deleted(), nil
}

func (h *routeHandlers) verify(ctx context.Context, in *IDPath) (*answer[api.Route], error) {
	r, err := h.leading.Verify(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Route]{Body: shownRoute(h.leading, r)}, nil
}

type shareInput struct {
	IDPath
	Body api.ShareVM
}

// defaultShare is how long a signed link is valid by default.
const defaultShare = time.Hour

func (h *routeHandlers) share(ctx context.Context, in *shareInput) (*answer[api.Share], error) {
	life := cmp.Or(time.Duration(in.Body.ExpiresInSeconds)*time.Second, defaultShare)
	link, until, err := h.leading.Share(ctx, scope(ctx), in.ID, in.Body.Port, life)
	if err != nil {
		return nil, err
	}
	return &answer[api.Share]{Body: api.Share{URL: link, ExpiresAt: utc(until)}}, nil
}

func (h *routeHandlers) endShares(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := h.leading.EndLinks(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

// routeDraft decodes a route. The service validates it.
func routeDraft(in api.CreateRoute) (hostroute.Draft, error) {
	allowed, err := hostroute.ParseAllowed(in.AllowedCIDRs)
	d := hostroute.Draft{Spec: hostroute.Spec{
		Subdomain: in.Subdomain, Domain: in.Domain, Port: in.TargetPort, NoWake: in.AutoWake != nil && !*in.AutoWake,
		Allowed: allowed, Upstream: hostroute.Upstream(in.Upstream),
	}}
	if in.Auth != nil {
		d.Auth, d.Password = hostroute.Auth{Mode: hostroute.Mode(in.Auth.Mode), Username: in.Auth.Username}, in.Auth.Password
	}
	if in.Timeouts != nil {
		d.ResponseTimeout = time.Duration(in.Timeouts.ResponseHeaderSeconds) * time.Second
	}
	return d, err
}

// routeSpecs decodes the routes of a new VM or of a template; nil means not given.
func routeSpecs(leading Routes, in []api.CreateRoute) ([]hostroute.Spec, error) {
	if in == nil {
		return nil, nil
	}
	drafts := make([]hostroute.Draft, len(in))
	for i, r := range in {
		var err error
		if drafts[i], err = routeDraft(r); err != nil {
			return nil, hostroute.InList(i, err)
		}
	}
	return leading.DecideAll(drafts)
}

// implicitRoutes decodes whether implicit names lead to a VM; nil means not given.
func implicitRoutes(in *bool) *hostroute.Implicit {
	switch {
	case in == nil:
		return nil
	case *in:
		return new(hostroute.ImplicitOn)
	}
	return new(hostroute.ImplicitOff)
}

// shownImplicit returns nil for the server's choice.
func shownImplicit(i hostroute.Implicit) *bool {
	if i == hostroute.ServersChoice {
		return nil
	}
	return new(i == hostroute.ImplicitOn)
}

// shownSpec is the reverse of routeDraft, but for the password.
func shownSpec(s hostroute.Spec) api.CreateRoute {
	out := api.CreateRoute{
		Subdomain: s.Subdomain, Domain: s.Domain, TargetPort: s.Port, AutoWake: new(!s.NoWake), Upstream: string(s.Upstream),
		Auth: &api.RouteAuth{Mode: string(s.Auth.Mode), Username: s.Auth.Username},
	}
	for _, p := range s.Allowed {
		out.AllowedCIDRs = append(out.AllowedCIDRs, p.String())
	}
	if s.ResponseTimeout > 0 {
		out.Timeouts = &api.RouteTimeouts{ResponseHeaderSeconds: int(s.ResponseTimeout / time.Second)}
	}
	return out
}

func shownRoute(leading Routes, r hostroute.Route) api.Route {
	spec := shownSpec(r.Spec)
	out := api.Route{
		ID: r.ID, VMID: r.VMID, URL: leading.Address(r), Subdomain: spec.Subdomain, Domain: spec.Domain, TargetPort: spec.TargetPort,
		AutoWake: *spec.AutoWake, Auth: *spec.Auth, AllowedCIDRs: spec.AllowedCIDRs, Timeouts: spec.Timeouts, Upstream: spec.Upstream,
		CreatedAt: utc(r.CreatedAt), UpdatedAt: utc(r.UpdatedAt),
	}
	switch {
	case r.Domain == "":
		return out
	case r.VerifiedAt == nil:
		out.DomainState = api.DomainPending
	case r.Missed > 0:
		out.DomainState = api.DomainUnproven
	default:
		out.DomainState = api.DomainVerified
	}
	if out.DomainState != api.DomainVerified {
		out.Verification = &api.DomainVerification{Type: "TXT", Name: hostroute.ProofName(r.Domain), Value: r.Proof}
	}
	return out
}
