package route

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// Store stores routes. A method that takes a scope sees only the routes and VMs in that
// scope. Each change of a route counts as one of its VM, and appends an event.
type Store interface {
	// InsertRoute stores a route to a VM in scope, whose owner it gets. Errors:
	// errs.NotFound with code vm_not_found; errs.Conflict with code subdomain_taken,
	// domain_taken, or too_many_routes if the VM already has most routes.
	InsertRoute(ctx context.Context, scope access.Scope, r Route, most int) (Route, error)

	// Route returns one route. Errors: errs.NotFound with code route_not_found.
	Route(ctx context.Context, scope access.Scope, id string) (Route, error)

	// Routes returns the routes to a VM, "" for all VMs, newest first; none for a VM that
	// does not exist.
	Routes(ctx context.Context, scope access.Scope, vmID string) ([]Route, error)

	// UpdateRoute applies change in one transaction and stores Spec and VerifiedAt,
	// unless change returns an error. change may run more than once. Errors:
	// errs.NotFound; errs.Conflict with code subdomain_taken or domain_taken; change's.
	UpdateRoute(ctx context.Context, scope access.Scope, id string, change func(*Route) error) (Route, error)

	// DeleteRoute removes a route, unless check returns an error for it.
	// Errors: errs.NotFound; check's.
	DeleteRoute(ctx context.Context, scope access.Scope, id string, check func(Route) error) error

	Names
	Links
	Checks
}

// Checks is the part of the store that domains are proved again with.
type Checks interface {
	// DomainsToCheck returns routes whose owners have proved their domains, and that were
	// not checked since, those of the oldest checks first; at most limit.
	DomainsToCheck(ctx context.Context, since time.Time, limit int) ([]Route, error)

	// RecordTries stores that these routes are looked at: others are returned first then.
	RecordTries(ctx context.Context, routes []Route, at time.Time) error

	// RecordCheck stores that a route's proof was looked for, and how often in a row it was
	// missed; with MaxMissed the domain is not verified any more. It does nothing to a route
	// that is gone or was verified anew.
	RecordCheck(ctx context.Context, r Route, at time.Time, missed int) error
}

// VM is what routes have to know of a VM.
type VM struct {
	ID         string
	OwnerID    string
	Generation int64 // of its signed links
	Implicit   Implicit
}

// Names is the part of the store that host names are resolved with.
type Names interface {
	// NamesVersion is a number that goes up after each change that may make a host name
	// lead elsewhere. It needs no database.
	NamesVersion() uint64

	// ServedRoute returns the route that has this subdomain or, if that is "", this
	// domain, and its VM. Errors: errs.NotFound with code route_not_found, also if the
	// domain is not verified.
	ServedRoute(ctx context.Context, subdomain, domain string) (Route, VM, error)

	// VMNamed returns the VM with this id or, failing that, the only one with this name.
	// Errors: errs.NotFound with code vm_not_found.
	VMNamed(ctx context.Context, id, name string) (VM, error)
}

// Links is the part of the store that signed links need.
type Links interface {
	// LinkSecret returns what signs links: fresh, if there is none yet.
	LinkSecret(ctx context.Context, fresh []byte) ([]byte, error)

	// LinkedVM returns a VM. Errors: errs.NotFound with code vm_not_found.
	LinkedVM(ctx context.Context, scope access.Scope, id string) (VM, error)

	// EndLinks ends all signed links of a VM. Errors: errs.NotFound with code vm_not_found.
	EndLinks(ctx context.Context, scope access.Scope, id string) error
}
