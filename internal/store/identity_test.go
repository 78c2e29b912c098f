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
		alice := access.User{ID: "usr_a", Name: "alice", Role: access.RoleMember, CreatedAt: now(), UpdatedAt: now()}
		noError(t, s.InsertIdentity(ctx, alice, issuer, subject))
		got, err := s.UserByIdentity(ctx, issuer, subject)
		noError(t, err)
		equal(t, got, alice)
		for _, other := range [][2]string{{issuer, "12345"}, {issuer + "/", subject}, {"", ""}, {issuer, "\x00"}} {
			_, err := s.UserByIdentity(ctx, other[0], other[1])
			hasCode(t, err, errs.NotFound, "user_not_found")
		}
		twin := alice
		twin.ID, twin.Name = "usr_b", "bob"
		hasCode(t, s.InsertIdentity(ctx, twin, issuer, subject), errs.Conflict, "identity_exists")
		twin.Name = "alice"
		hasCode(t, s.InsertIdentity(ctx, twin, issuer, "5678"), errs.Conflict, "user_exists")
		// Users that admins make have no identity, and any number of them.
		for _, id := range []string{"usr_c", "usr_d"} {
			noError(t, s.InsertUser(ctx, access.User{ID: id, Name: id + "x", Role: access.RoleMember, CreatedAt: now(), UpdatedAt: now()}))
		}
	})
}
