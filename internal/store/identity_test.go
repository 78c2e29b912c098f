package store

import (
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

func TestIdentities(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		const issuer, subject = "https://id.example.org", "1234"
		ctx := t.Context()
		alice := access.User{
			ID: "usr_a", Name: "alice", Role: access.RoleMember, CreatedAt: now(), UpdatedAt: now(),
			Issuer: issuer, Subject: subject, RoleAt: now(),
		}
		noError(t, s.InsertIdentity(ctx, alice))
		got, err := s.UserByIdentity(ctx, issuer, subject)
		noError(t, err)
		equal(t, got, alice)
		for _, other := range [][2]string{{issuer, "12345"}, {issuer + "/", subject}, {"", ""}, {issuer, "\x00"}} {
			_, err := s.UserByIdentity(ctx, other[0], other[1])
			hasCode(t, err, errs.NotFound, "user_not_found")
		}
		twin := alice
		twin.ID, twin.Name = "usr_b", "bob"
		hasCode(t, s.InsertIdentity(ctx, twin), errs.Conflict, "identity_exists")
		hasCode(t, s.AdmitIdentity(ctx, twin), errs.Conflict, "identity_exists")
		twin.Name, twin.Subject = "alice", "5678"
		hasCode(t, s.InsertIdentity(ctx, twin), errs.Conflict, "user_exists")
		// Users that admins make have no identity, and any number of them.
		for _, id := range []string{"usr_c", "usr_d"} {
			noError(t, s.InsertUser(ctx, access.User{ID: id, Name: id + "x", Role: access.RoleMember, CreatedAt: now(), UpdatedAt: now()}))
		}
	})
}

// The subject of a user that was deleted is refused, until an admin admits it.
func TestDeletedIdentities(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, access.SystemID)
		u := access.User{ID: "usr_a", Name: "alice", Role: access.RoleMember, CreatedAt: now(), UpdatedAt: now(), Issuer: "https://id", Subject: "1"}
		for range 2 {
			noError(t, s.AdmitIdentity(ctx, u))
			_, err := s.BeginDeletion(ctx, u.ID, anything)
			noError(t, err)
			noError(t, s.EndDeletion(ctx, u.ID))
			_, err = s.UserByIdentity(ctx, u.Issuer, u.Subject)
			hasCode(t, err, errs.Unauthenticated, "user_deleted")
			hasCode(t, s.InsertIdentity(ctx, u), errs.Unauthenticated, "user_deleted")
		}
		u.Subject = "2"
		noError(t, s.InsertIdentity(ctx, u))
	})
}
