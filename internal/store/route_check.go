package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/route"
)

// DomainsToCheck implements [route.Checks]. Those of admins have no proof: they were
// verified when they were made.
func (s *routeStore) DomainsToCheck(ctx context.Context, since time.Time, limit int) ([]route.Route, error) {
	return listRoutes(ctx, s.reads, s.keys, selectRoute+` WHERE verified_at IS NOT NULL AND verified_at <> created_at AND COALESCE(checked_at, verified_at) < ?
		ORDER BY COALESCE(tried_at, 0), COALESCE(checked_at, verified_at), id LIMIT ?`, micros(since), limit)
}

// RecordTries implements [route.Checks].
func (s *routeStore) RecordTries(ctx context.Context, routes []route.Route, at time.Time) error {
	return s.write(ctx, func(tx *tx) error {
		for _, r := range routes {
			if _, err := tx.exec(ctx, "UPDATE routes SET tried_at = ? WHERE id = ?", micros(at), r.ID); err != nil {
				return checked(err)
			}
		}
		return nil
	})
}

// RecordCheck implements [route.Checks]. What goes on as it was is no event, and no change
// of the VM.
func (s *routeStore) RecordCheck(ctx context.Context, r route.Route, at time.Time, missed int) error {
	return s.write(ctx, func(tx *tx) error {
		was := optionalMicros(r.VerifiedAt)
		if missed == 0 && r.Missed == 0 {
			_, err := tx.exec(ctx, "UPDATE routes SET checked_at = ? WHERE id = ? AND verified_at = ?", micros(at), r.ID, was)
			return checked(err)
		}
		vmName, _, err := tx.touchVM(ctx, access.Everyone, r.VMID)
		if errs.Is(err, errs.NotFound) { // and so is the route
			return nil
		}
		if err != nil {
			return err
		}
		still := was
		if missed >= route.MaxMissed {
			still.Valid, tx.renamed = false, true
		}
		n, err := tx.exec(ctx, "UPDATE routes SET checked_at = ?, missed = ?, verified_at = ?, updated_at = ? WHERE id = ? AND verified_at = ?",
			micros(at), missed, still, micros(at), r.ID, was)
		if err != nil || n == 0 {
			return checked(err)
		}
		stored, err := oneRoute(ctx, tx, tx.keys, access.Everyone, r.ID)
		if err != nil {
			return err
		}
		if missed == 0 {
			return tx.appendEvents(ctx, []event.Event{stored.About(vmName, event.RouteUpdated)})
		}
		return tx.appendEvents(ctx, []event.Event{stored.Unproven(vmName)})
	})
}

func checked(err error) error {
	if err != nil {
		err = fmt.Errorf("cannot store the check of a domain: %w", err)
	}
	return err
}
