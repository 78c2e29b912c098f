package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/secret"
)

var _ route.Store = (*Store)(nil)

// routeRow is a route as stored in its table. Spec has no subdomain and no domain; the
// hash of the password in it is encrypted.
type routeRow struct {
	ID         string           `db:"id"`
	OwnerID    string           `db:"owner_id"`
	VMID       string           `db:"vm_id"`
	Subdomain  sql.Null[string] `db:"subdomain"`
	Domain     sql.Null[string] `db:"domain"`
	Proof      string           `db:"proof"`
	VerifiedAt sql.NullInt64    `db:"verified_at"`
	CheckedAt  sql.NullInt64    `db:"checked_at"`
	Missed     int              `db:"missed"`
	Spec       string           `db:"spec"`
	CreatedAt  int64            `db:"created_at"`
	UpdatedAt  int64            `db:"updated_at"`
}

const selectRoute = "SELECT id, owner_id, vm_id, subdomain, domain, proof, verified_at, checked_at, missed, spec, created_at, updated_at FROM routes"

func routeRowOf(keys *secret.Keyring, r route.Route) (routeRow, error) {
	row := routeRow{
		ID: r.ID, OwnerID: r.OwnerID, VMID: r.VMID, Subdomain: optional(r.Subdomain), Domain: optional(r.Domain),
		Proof: r.Proof, VerifiedAt: optionalMicros(r.VerifiedAt), CheckedAt: optionalMicros(r.CheckedAt), Missed: r.Missed, CreatedAt: micros(r.CreatedAt), UpdatedAt: micros(r.UpdatedAt),
	}
	spec := r.Spec
	spec.Subdomain, spec.Domain = "", ""
	spec.Auth.Hash = keys.Seal(placeOfRoute(r.ID), spec.Auth.Hash)
	var err error
	row.Spec, err = toJSON(spec)
	return row, err
}

func (r routeRow) route(keys *secret.Keyring) (route.Route, error) {
	out := route.Route{
		ID: r.ID, OwnerID: r.OwnerID, VMID: r.VMID, Proof: r.Proof,
		VerifiedAt: optionalTime(r.VerifiedAt), CheckedAt: optionalTime(r.CheckedAt), Missed: r.Missed, CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt),
	}
	if err := fromJSON(r.Spec, &out.Spec); err != nil {
		return route.Route{}, fmt.Errorf("cannot read route %s: %w", r.ID, err)
	}
	out.Subdomain, out.Domain = r.Subdomain.V, r.Domain.V
	if err := openHash(keys, placeOfRoute(r.ID), &out.Spec); err != nil {
		return out, fmt.Errorf("cannot read route %s: %w", r.ID, err)
	}
	return out, nil
}

// openHash decrypts the hash of a spec's password, if it has one.
func openHash(keys *secret.Keyring, place string, spec *route.Spec) error {
	if spec.Auth.Hash == nil {
		return nil
	}
	hash, err := keys.Open(place, spec.Auth.Hash)
	spec.Auth.Hash = hash
	return err
}

// InsertRoute implements [route.Store].
func (s *routeStore) InsertRoute(ctx context.Context, scope access.Scope, r route.Route, most int) (route.Route, error) {
	if !storable(r.VMID) {
		return route.Route{}, noVM(r.VMID)
	}
	err := s.write(ctx, func(tx *tx) error {
		name, owner, err := tx.touchVM(ctx, scope, r.VMID)
		if err != nil {
			return err
		}
		r.OwnerID = owner
		if err := tx.remember(ctx, r.OwnerID, r.ID); err != nil {
			return err
		}
		if err := tx.checkQuota(ctx, r.OwnerID, quota.Amounts{quota.Routes: 1}); err != nil {
			return err
		}
		var have int
		if _, err := tx.get(ctx, &have, "SELECT COUNT(*) FROM routes WHERE vm_id = ?", r.VMID); err != nil {
			return fmt.Errorf("cannot count routes: %w", err)
		}
		if have >= most {
			return errs.New(errs.Conflict, "too_many_routes", "cannot create another route: the VM has %d already", have).
				WithHint("delete one first")
		}
		if err := tx.insertRoute(ctx, r); err != nil {
			return err
		}
		return tx.appendEvents(ctx, []event.Event{r.About(name, event.RouteCreated)})
	})
	return r, err
}

// touchVM counts a change of a VM, and with it locks the routes of the VM. It returns
// the VM's name and its owner.
func (t *tx) touchVM(ctx context.Context, scope access.Scope, id string) (name, ownerID string, err error) {
	owned, args := inScope(scope)
	n, err := t.exec(ctx, "UPDATE vms SET revision = revision + 1, updated_at = ? WHERE id = ? AND "+owned, append([]any{micros(time.Now()), id}, args...)...)
	if err != nil {
		return "", "", fmt.Errorf("cannot lock the VM: %w", err)
	}
	if n == 0 {
		return "", "", noVM(id)
	}
	var row struct {
		Name    string `db:"name"`
		OwnerID string `db:"owner_id"`
	}
	if _, err := t.get(ctx, &row, "SELECT name, owner_id FROM vms WHERE id = ?", id); err != nil {
		return "", "", fmt.Errorf("cannot read the VM: %w", err)
	}
	return row.Name, row.OwnerID, nil
}

func (t *tx) insertRoute(ctx context.Context, r route.Route) error {
	row, err := routeRowOf(t.keys, r)
	if err != nil {
		return err
	}
	t.renamed = true
	_, err = t.NamedExecContext(ctx, `INSERT INTO routes (id, owner_id, vm_id, subdomain, domain, proof, verified_at, checked_at, missed, spec, created_at, updated_at)
		VALUES (:id, :owner_id, :vm_id, :subdomain, :domain, :proof, :verified_at, :checked_at, :missed, :spec, :created_at, :updated_at)`, row)
	return storedRoute(r, err)
}

// storedRoute returns the error of storing a route, if there is one.
func storedRoute(r route.Route, err error) error {
	switch {
	case violated(err) == "routes_subdomain":
		return errs.New(errs.Conflict, "subdomain_taken", "subdomain: another route has %q", r.Subdomain).
			WithField("subdomain").WithHint("give another, or none for a random one").WithCause(err)
	case violated(err) == "routes_domain":
		return errs.New(errs.Conflict, "domain_taken", "domain: another route has %q", r.Domain).
			WithField("domain").WithHint("delete that route first").WithCause(err)
	case err != nil:
		return fmt.Errorf("cannot store the route: %w", err)
	}
	return nil
}

// Route implements [route.Store].
func (s *routeStore) Route(ctx context.Context, scope access.Scope, id string) (route.Route, error) {
	if !storable(id) {
		return route.Route{}, errNoRoute
	}
	return oneRoute(ctx, s.reads, s.keys, scope, id)
}

func oneRoute(ctx context.Context, q querier, keys *secret.Keyring, scope access.Scope, id string) (route.Route, error) {
	owned, args := inScope(scope)
	found, err := selectRoutes(ctx, q, keys, selectRoute+" WHERE id = ? AND "+owned, append([]any{id}, args...)...)
	if err != nil {
		return route.Route{}, err
	}
	if len(found) == 0 {
		return route.Route{}, errNoRoute
	}
	return found[0], nil
}

// selectRoutes returns routes with the hashes of their passwords.
func selectRoutes(ctx context.Context, q querier, keys *secret.Keyring, query string, args ...any) ([]route.Route, error) {
	return readRoutes(ctx, q, func(r routeRow) (route.Route, error) { return r.route(keys) }, query, args...)
}

// listRoutes is selectRoutes for what needs no hash: one that cannot be opened is left
// out, and the other routes are listed.
func listRoutes(ctx context.Context, q querier, keys *secret.Keyring, query string, args ...any) ([]route.Route, error) {
	return readRoutes(ctx, q, func(row routeRow) (route.Route, error) {
		r, err := row.route(keys)
		if errors.Is(err, secret.ErrNotOpened) {
			err = nil
		}
		return r, err
	}, query, args...)
}

func readRoutes(ctx context.Context, q querier, read func(routeRow) (route.Route, error), query string, args ...any) ([]route.Route, error) {
	var rows []routeRow
	if err := selectAll(ctx, q, &rows, query, args...); err != nil {
		return nil, fmt.Errorf("cannot read routes: %w", err)
	}
	routes := make([]route.Route, len(rows))
	for i, r := range rows {
		var err error
		if routes[i], err = read(r); err != nil {
			return nil, err
		}
	}
	return routes, nil
}

// Routes implements [route.Store].
func (s *routeStore) Routes(ctx context.Context, scope access.Scope, vmID string) ([]route.Route, error) {
	owned, args := inScope(scope)
	const newest = " ORDER BY created_at DESC, id DESC"
	if vmID == "" {
		return listRoutes(ctx, s.reads, s.keys, selectRoute+" WHERE "+owned+newest, args...)
	}
	if !storable(vmID) {
		return nil, nil
	}
	// The scope is not in the query: SQLite would walk along all routes of the owner.
	found, err := listRoutes(ctx, s.reads, s.keys, selectRoute+" WHERE vm_id = ?"+newest, vmID)
	return slices.DeleteFunc(found, func(r route.Route) bool { return !scope.Sees(r.OwnerID) }), err
}

// CountRoutes returns the number of routes in scope.
func (s *routeStore) CountRoutes(ctx context.Context, scope access.Scope) (count int, err error) {
	owned, args := inScope(scope)
	if _, err := get(ctx, s.reads, &count, "SELECT COUNT(*) FROM routes WHERE "+owned, args...); err != nil {
		return 0, fmt.Errorf("cannot count routes: %w", err)
	}
	return count, nil
}

// UpdateRoute implements [route.Store].
func (s *routeStore) UpdateRoute(ctx context.Context, scope access.Scope, id string, change func(*route.Route) error) (stored route.Route, err error) {
	if !storable(id) {
		return route.Route{}, errNoRoute
	}
	err = s.write(ctx, func(tx *tx) error {
		r, vmName, err := tx.lockRoute(ctx, scope, id)
		if err != nil {
			return err
		}
		if err := change(&r); err != nil {
			return err
		}
		r.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
		row, err := routeRowOf(tx.keys, r)
		if err != nil {
			return err
		}
		tx.renamed = true
		_, err = tx.NamedExecContext(ctx, `UPDATE routes SET subdomain = :subdomain, domain = :domain, verified_at = :verified_at, checked_at = :checked_at, missed = :missed, spec = :spec, updated_at = :updated_at
			WHERE id = :id`, row)
		if err := storedRoute(r, err); err != nil {
			return err
		}
		if stored, err = oneRoute(ctx, tx, tx.keys, scope, id); err != nil {
			return err
		}
		return tx.appendEvents(ctx, []event.Event{stored.About(vmName, event.RouteUpdated)})
	})
	return stored, err
}

// lockRoute locks the routes of a route's VM, and reads the route.
func (t *tx) lockRoute(ctx context.Context, scope access.Scope, id string) (r route.Route, vmName string, err error) {
	if r, err = oneRoute(ctx, t, t.keys, scope, id); err != nil {
		return r, "", err
	}
	if vmName, _, err = t.touchVM(ctx, scope, r.VMID); err != nil {
		if errs.Is(err, errs.NotFound) { // deleted since, with its routes
			err = errNoRoute
		}
		return r, "", err
	}
	r, err = oneRoute(ctx, t, t.keys, scope, id)
	return r, vmName, err
}

// DeleteRoute implements [route.Store].
func (s *routeStore) DeleteRoute(ctx context.Context, scope access.Scope, id string, check func(route.Route) error) error {
	if !storable(id) {
		return errNoRoute
	}
	return s.write(ctx, func(tx *tx) error {
		r, vmName, err := tx.lockRoute(ctx, scope, id)
		if err != nil {
			return err
		}
		if err := check(r); err != nil {
			return err
		}
		tx.renamed = true
		if _, err := tx.exec(ctx, "DELETE FROM routes WHERE id = ?", id); err != nil {
			return fmt.Errorf("cannot delete the route: %w", err)
		}
		return tx.appendEvents(ctx, []event.Event{r.About(vmName, event.RouteDeleted)})
	})
}

var errNoRoute = errs.New(errs.NotFound, "route_not_found", "there is no such route").WithHint("GET /routes lists them")
