package store

import (
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/route"
)

func TestChecksOfDomains(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		createVM(t, s, newVM("vm_a"))
		insertRoute(t, s, fullRoute("vm_a", "web"))
		insertRoute(t, s, domainRoute("vm_a", "pending.example.org", false))
		insertRoute(t, s, domainRoute("vm_a", "admin.example.org", true))
		proved := domainRoute("vm_a", "www.example.org", true)
		at := proved.CreatedAt.Add(time.Second)
		proved.VerifiedAt = &at
		insertRoute(t, s, proved)

		due := func(since time.Time) []route.Route {
			t.Helper()
			found, err := s.DomainsToCheck(ctx, since, 10)
			noError(t, err)
			return found
		}
		before := eventTypes(t, s, "vm_a")
		record := func(missed int, events string) route.Route {
			t.Helper()
			found := due(at.Add(time.Second))
			if len(found) != 1 || found[0].ID != proved.ID {
				t.Fatalf("to be checked are %+v", found)
			}
			at = at.Add(time.Hour)
			noError(t, s.RecordCheck(ctx, found[0], at, missed))
			if left := due(at); len(left) > 0 {
				t.Errorf("after a check are to be checked %+v", left)
			}
			equal(t, eventTypes(t, s, "vm_a"), before+events)
			stored, err := s.Route(ctx, access.Everyone, proved.ID)
			noError(t, err)
			if stored.Missed != missed || stored.Served() != (missed < route.MaxMissed) || stored.CheckedAt == nil || !stored.CheckedAt.Equal(at) {
				t.Errorf("missed %d times: %+v", missed, stored)
			}
			return stored
		}
		record(0, "")
		record(1, " route.domain_unproven")
		record(0, " route.domain_unproven route.updated")
		stale := record(1, " route.domain_unproven route.updated route.domain_unproven")
		version := s.NamesVersion()
		record(route.MaxMissed, " route.domain_unproven route.updated route.domain_unproven route.domain_unproven")
		if s.NamesVersion() == version {
			t.Error("a domain that is not served any more is no change of names")
		}
		noError(t, s.RecordCheck(ctx, stale, at, 1)) // of what it was before
		if now, err := s.Route(ctx, access.Everyone, proved.ID); err != nil || now.Served() {
			t.Errorf("%+v, %v", now, err)
		}
	})
}

// Domains that the DNS does not answer for come after others.
func TestDomainsThatWereTriedComeLast(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		for _, domain := range []string{"a.example.org", "b.example.org"} {
			r := domainRoute("vm_a", domain, true)
			at := r.CreatedAt.Add(time.Second)
			r.VerifiedAt = &at
			insertRoute(t, s, r)
		}
		since := now().Add(time.Hour)
		next := func() route.Route {
			t.Helper()
			found, err := s.DomainsToCheck(t.Context(), since, 1)
			noError(t, err)
			equal(t, len(found), 1)
			noError(t, s.RecordTries(t.Context(), found, since))
			return found[0]
		}
		if first, second := next(), next(); first.ID == second.ID {
			t.Errorf("%s comes twice", first.Domain)
		}
	})
}
