package store

import (
	"context"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// UserByIdentity implements [access.IdentityStore].
func (s *accessStore) UserByIdentity(ctx context.Context, issuer, subject string) (access.User, error) {
	if !storable(issuer) || !storable(subject) {
		return access.User{}, errNoUser
	}
	var row userRow
	found, err := get(ctx, s.reads, &row, selectUser+" AND oidc_issuer = ? AND oidc_subject = ?", issuer, subject)
	if err != nil {
		return access.User{}, fmt.Errorf("cannot read the user of a token: %w", err)
	}
	if !found {
		return access.User{}, errNoUser
	}
	return row.user(), nil
}

// InsertIdentity implements [access.IdentityStore].
func (s *accessStore) InsertIdentity(ctx context.Context, u access.User, issuer, subject string) error {
	if !storable(issuer) || !storable(subject) {
		return errs.New(errs.Unauthenticated, "invalid_token", "the token is not valid: its subject has characters that cannot be stored")
	}
	return s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "INSERT INTO users (id, name, role, disabled, created_at, updated_at, oidc_issuer, oidc_subject) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			u.ID, u.Name, string(u.Role), u.Disabled, micros(u.CreatedAt), micros(u.UpdatedAt), issuer, subject)
		if violated(err) == "users_oidc_issuer_oidc_subject" {
			return errs.New(errs.Conflict, "identity_exists", "another user is bound to this subject of the issuer").WithCause(err)
		}
		return storedUser(u, err)
	})
}
