// Package route decides where a host name leads: to which port of which VM, and who
// may follow it.
//
// A route is a row that an owner makes, with a subdomain of the proxy's domain or a
// domain of the owner's own. Without a route, PORT-VM leads to a port of a VM, for
// callers with a key or a signed link. The package knows no HTTP and connects to
// nothing: doors do, and ask it. Start at [Service.Resolve] and [Service.Authorize];
// [Route] is the row, check.go what it may say, link.go has signed links.
package route

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/id"
)

// IDPrefix starts every route's id.
const IDPrefix = "rt_"

// Route is a host name that leads to a port of a VM.
type Route struct {
	ID, OwnerID, VMID string
	Spec
	Proof      string     // what the TXT record of the domain has to hold; "" without a domain
	VerifiedAt *time.Time // when the owner had proved the domain; nil until then, and without a domain
	CheckedAt  *time.Time // when the proof was last looked for again; nil before
	Missed     int        // how often in a row it was not there
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

// Spec is what an owner decides about a route. The JSON form is stored in the rows of
// templates: a key never changes its name or meaning.
type Spec struct {
	Subdomain       string         `json:"subdomain,omitempty"` // one label; "" for a random one, or with a domain
	Domain          string         `json:"domain,omitempty"`    // a name of the owner's own; "" with a subdomain
	Port            int            `json:"port"`
	NoWake          bool           `json:"no_wake,omitempty"` // a request does not wake the VM
	Auth            Auth           `json:"auth"`
	Allowed         []netip.Prefix `json:"allowed,omitempty"` // whose requests are accepted; empty: all
	Upstream        Upstream       `json:"upstream"`
	ResponseTimeout time.Duration  `json:"response_timeout,omitempty"` // for the head of an answer; 0: no limit
}

// New returns a route to a VM of this owner, with an id. A spec that says neither
// subdomain nor domain gets a random subdomain.
func New(owner, vmID string, s Spec) Route {
	now := time.Now().UTC().Truncate(time.Microsecond)
	r := Route{ID: id.New(IDPrefix), OwnerID: owner, VMID: vmID, Spec: s, CreatedAt: now, UpdatedAt: now}
	if s.Domain != "" {
		r.Proof = "hatch-verification=" + id.Random(id.Lower, 32)
	} else if s.Subdomain == "" {
		r.Subdomain = id.Random("0123456789abcdef", 12)
	}
	return r
}

// Proved returns a route whose domain, if it has one, needs no proof: its maker decides
// which domains are whose.
func (r Route) Proved() Route {
	if r.Domain != "" {
		at := r.CreatedAt
		r.VerifiedAt = &at
	}
	return r
}

// Granted reports whether the route has a domain that was not proved, but given by an admin.
func (r Route) Granted() bool { return r.VerifiedAt != nil && r.VerifiedAt.Equal(r.CreatedAt) }

// Unproven returns the event of a domain whose proof was not found again, of a VM with this
// name.
func (r Route) Unproven(vmName string) event.Event {
	message := fmt.Sprintf("%s has no TXT record with its proof any more, found %d times of %d; then it is not served", r.Domain, r.Missed, MaxMissed)
	if !r.Served() {
		message = fmt.Sprintf("%s is not served any more: it has no TXT record with its proof", r.Domain)
	}
	e := event.Of(event.RouteUnproven, message, struct {
		RouteID string `json:"route_id"`
		Domain  string `json:"domain"`
		Missed  int    `json:"missed"`
		Served  bool   `json:"served"`
	}{r.ID, r.Domain, r.Missed, r.Served()})
	e.OwnerID, e.VMID, e.VMName = r.OwnerID, r.VMID, vmName
	return e
}

// About returns an event about the route, of a VM with this name.
func (r Route) About(vmName string, t event.Type) event.Event {
	e := event.Of(t, fmt.Sprintf("%s leads to port %d", r.Label(), r.Port), struct {
		RouteID   string `json:"route_id"`
		Subdomain string `json:"subdomain,omitempty"`
		Domain    string `json:"domain,omitempty"`
		Port      int    `json:"target_port"`
	}{r.ID, r.Subdomain, r.Domain, r.Port})
	e.OwnerID, e.VMID, e.VMName = r.OwnerID, r.VMID, vmName
	return e
}

// Served reports whether requests to the route's name reach its VM.
func (r Route) Served() bool { return r.Domain == "" || r.VerifiedAt != nil }

// Label is the name that the route shows: its domain, or its subdomain.
func (s Spec) Label() string {
	if s.Domain != "" {
		return s.Domain
	}
	return s.Subdomain
}

// Target returns where the route leads.
func (r Route) Target() Target {
	return Target{
		VMID: r.VMID, OwnerID: r.OwnerID, RouteID: r.ID, Port: r.Port, AutoWake: !r.NoWake,
		Auth: r.Auth, Allowed: r.Allowed, Upstream: r.Upstream, ResponseTimeout: r.ResponseTimeout,
	}
}
