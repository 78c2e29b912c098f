package store

import (
	"context"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/route"
)

// NamesVersion implements [route.Names].
func (s *routeStore) NamesVersion() uint64 { return s.renamed.Load() }

// ServedRoute implements [route.Names].
func (s *routeStore) ServedRoute(ctx context.Context, subdomain, domain string) (r route.Route, v route.VM, err error) {
	if !storable(subdomain, domain) {
		return r, v, errNoRoute
	}
	where, name := " WHERE subdomain = ?", subdomain
	if subdomain == "" {
		where, name = " WHERE domain = ? AND verified_at IS NOT NULL", domain
	}
	err = s.read(ctx, func(q querier) error {
		found, err := selectRoutes(ctx, q, s.keys, selectRoute+where, name)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return errNoRoute
		}
		r = found[0]
		v, err = linkedVM(ctx, q, access.Everyone, r.VMID)
		return err
	})
	return r, v, err
}

const selectLinkedVM = "SELECT id, owner_id, spec, COALESCE((SELECT generation FROM link_generations WHERE vm_id = vms.id), 0) AS generation FROM vms"

// linkedRow is what is read of a VM for routes.
type linkedRow struct {
	ID         string `db:"id"`
	OwnerID    string `db:"owner_id"`
	Generation int64  `db:"generation"`
	Spec       string `db:"spec"`
}

func (r linkedRow) vm() (route.VM, error) {
	var spec struct {
		Implicit route.Implicit `json:"implicit_routes"`
	}
	if err := fromJSON(r.Spec, &spec); err != nil {
		return route.VM{}, fmt.Errorf("cannot read VM %s: %w", r.ID, err)
	}
	return route.VM{ID: r.ID, OwnerID: r.OwnerID, Generation: r.Generation, Implicit: spec.Implicit}, nil
}

// VMNamed implements [route.Names].
func (s *routeStore) VMNamed(ctx context.Context, id, name string) (route.VM, error) {
	if !storable(id, name) {
		return route.VM{}, noVM(name)
	}
	for _, by := range []struct{ where, value string }{{" WHERE id = ?", id}, {" WHERE name = ? AND name <> '' LIMIT 2", name}} {
		var found []linkedRow
		if err := selectAll(ctx, s.reads, &found, selectLinkedVM+by.where, by.value); err != nil {
			return route.VM{}, fmt.Errorf("cannot look up a VM: %w", err)
		}
		if len(found) == 1 {
			return found[0].vm()
		}
	}
	return route.VM{}, noVM(name)
}

// LinkSecret implements [route.Links].
func (s *routeStore) LinkSecret(ctx context.Context, fresh []byte) (secret []byte, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if _, err := tx.exec(ctx, "INSERT INTO link_secret (id, secret) VALUES (1, ?) ON CONFLICT (id) DO NOTHING", s.keys.Seal(placeOfLinks(), fresh)); err != nil {
			return fmt.Errorf("cannot store the secret of signed links: %w", err)
		}
		if _, err := tx.get(ctx, &secret, "SELECT secret FROM link_secret WHERE id = 1"); err != nil {
			return fmt.Errorf("cannot read the secret of signed links: %w", err)
		}
		secret, err = s.keys.Open(placeOfLinks(), secret)
		return err
	})
	return secret, err
}

// LinkedVM implements [route.Links].
func (s *routeStore) LinkedVM(ctx context.Context, scope access.Scope, id string) (route.VM, error) {
	if !storable(id) {
		return route.VM{}, noVM(id)
	}
	return linkedVM(ctx, s.reads, scope, id)
}

func linkedVM(ctx context.Context, q querier, scope access.Scope, id string) (route.VM, error) {
	owned, args := inScope(scope)
	var row linkedRow
	found, err := get(ctx, q, &row, selectLinkedVM+" WHERE id = ? AND "+owned, append([]any{id}, args...)...)
	if err != nil {
		return route.VM{}, fmt.Errorf("cannot read the VM: %w", err)
	}
	if !found {
		return route.VM{}, noVM(id)
	}
	return row.vm()
}

// EndLinks implements [route.Links].
func (s *routeStore) EndLinks(ctx context.Context, scope access.Scope, id string) error {
	if !storable(id) {
		return noVM(id)
	}
	return s.write(ctx, func(tx *tx) error {
		if _, err := linkedVM(ctx, tx, scope, id); err != nil {
			return err
		}
		tx.renamed = true
		_, err := tx.exec(ctx, `INSERT INTO link_generations (vm_id, generation) VALUES (?, 1)
			ON CONFLICT (vm_id) DO UPDATE SET generation = link_generations.generation + 1`, id)
		if referenceFailed(err) { // deleted since
			return noVM(id)
		}
		if err != nil {
			return fmt.Errorf("cannot end signed links: %w", err)
		}
		return nil
	})
}
