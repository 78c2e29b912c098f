package route_test

import (
	"context"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

// memory is a store for one test.
type memory struct {
	routes  []route.Route
	vms     []route.VM
	names   map[string]string // ids of VMs
	secret  []byte
	version uint64

	lookups  int
	fails    error
	onLookup func()
	onUpdate func(*route.Route)
}

func (m *memory) InsertRoute(_ context.Context, scope access.Scope, r route.Route, _ int) (route.Route, error) {
	v, err := m.LinkedVM(context.Background(), scope, r.VMID)
	r.OwnerID = v.OwnerID
	if err == nil {
		m.routes, m.version = append(m.routes, r), m.version+1
	}
	return r, err
}

func (m *memory) find(scope access.Scope, id string) int {
	return slices.IndexFunc(m.routes, func(r route.Route) bool { return r.ID == id && scope.Sees(r.OwnerID) })
}

var errNoRoute = errs.New(errs.NotFound, "route_not_found", "no route")

func (m *memory) Route(_ context.Context, scope access.Scope, id string) (route.Route, error) {
	if i := m.find(scope, id); i >= 0 {
		return m.routes[i], nil
	}
	return route.Route{}, errNoRoute
}

func (m *memory) Routes(_ context.Context, _ access.Scope, vmID string) (found []route.Route, _ error) {
	for _, r := range m.routes {
		if vmID == "" || r.VMID == vmID {
			found = append(found, r)
		}
	}
	return found, nil
}

func (m *memory) UpdateRoute(_ context.Context, scope access.Scope, id string, change func(*route.Route) error) (route.Route, error) {
	i := m.find(scope, id)
	if i < 0 {
		return route.Route{}, errNoRoute
	}
	r := m.routes[i]
	if m.onUpdate != nil {
		m.onUpdate(&r)
	}
	if err := change(&r); err != nil {
		return route.Route{}, err
	}
	if r.Domain != "" && r.VerifiedAt != nil && slices.ContainsFunc(m.routes, func(other route.Route) bool {
		return other.ID != id && other.Domain == r.Domain && other.VerifiedAt != nil
	}) {
		return route.Route{}, errs.New(errs.Conflict, "domain_taken", "taken")
	}
	r.UpdatedAt = r.UpdatedAt.Add(time.Second)
	m.routes[i], m.version = r, m.version+1
	return r, nil
}

func (m *memory) DeleteRoute(_ context.Context, scope access.Scope, id string, check func(route.Route) error) error {
	i := m.find(scope, id)
	if i < 0 {
		return errNoRoute
	}
	if err := check(m.routes[i]); err != nil {
		return err
	}
	m.routes, m.version = slices.Delete(m.routes, i, i+1), m.version+1
	return nil
}

func (m *memory) NamesVersion() uint64 { return m.version }

func (m *memory) ServedRoute(_ context.Context, subdomain, domain string) (route.Route, route.VM, error) {
	m.lookups++
	if m.onLookup != nil {
		m.onLookup()
	}
	for _, r := range m.routes {
		if r.Subdomain == subdomain && r.Domain == domain && r.Served() {
			v, err := m.LinkedVM(context.Background(), access.Everyone, r.VMID)
			return r, v, err
		}
	}
	if m.fails != nil {
		return route.Route{}, route.VM{}, m.fails
	}
	return route.Route{}, route.VM{}, errNoRoute
}

func (m *memory) VMNamed(ctx context.Context, id, name string) (route.VM, error) {
	m.lookups++
	if v, err := m.LinkedVM(ctx, access.Everyone, id); err == nil {
		return v, nil
	}
	return m.LinkedVM(ctx, access.Everyone, m.names[name])
}

func (m *memory) LinkSecret(_ context.Context, fresh []byte) ([]byte, error) {
	if m.secret == nil {
		m.secret = fresh
	}
	return m.secret, nil
}

func (m *memory) LinkedVM(_ context.Context, scope access.Scope, id string) (route.VM, error) {
	for _, v := range m.vms {
		if v.ID == id && scope.Sees(v.OwnerID) {
			return v, nil
		}
	}
	return route.VM{}, errs.New(errs.NotFound, "vm_not_found", "no VM")
}

func (m *memory) EndLinks(_ context.Context, _ access.Scope, id string) error {
	for i := range m.vms {
		if m.vms[i].ID == id {
			m.vms[i].Generation++
		}
	}
	m.version++
	return nil
}

func (m *memory) DomainsToCheck(_ context.Context, since time.Time, limit int) (due []route.Route, _ error) {
	for _, r := range m.routes {
		if r.VerifiedAt == nil || r.Granted() {
			continue
		}
		last := *r.VerifiedAt
		if r.CheckedAt != nil {
			last = *r.CheckedAt
		}
		if last.Before(since) && len(due) < limit {
			due = append(due, r)
		}
	}
	return due, nil
}

func (m *memory) RecordTries(context.Context, []route.Route, time.Time) error { return nil }

func (m *memory) RecordCheck(_ context.Context, r route.Route, at time.Time, missed int) error {
	i := m.find(access.Everyone, r.ID)
	if i < 0 {
		return nil
	}
	m.routes[i].CheckedAt, m.routes[i].Missed = &at, missed
	if missed >= route.MaxMissed {
		m.routes[i].VerifiedAt = nil
	}
	m.version++
	return nil
}
