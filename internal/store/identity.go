package store

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
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
		return access.User{}, cmp.Or(refused(ctx, s.reads, issuer, subject), error(errNoUser))
	}
	return row.user(), nil
}

// refused returns an error if the user of an issuer's subject was deleted.
func refused(ctx context.Context, q querier, issuer, subject string) error {
	var user string
	found, err := get(ctx, q, &user, "SELECT user_id FROM deleted_identities WHERE oidc_issuer = ? AND oidc_subject = ?", issuer, subject)
	if err != nil {
		return fmt.Errorf("cannot read whether the user of a token was deleted: %w", err)
	}
	if found {
		return errs.New(errs.Unauthenticated, "user_deleted", "the user of this token was deleted: it was %s, with the subject %q", user, errs.Brief(subject)).
			WithHint("an admin lets you in again: hatch user create NAME --oidc-subject SUBJECT")
	}
	return nil
}

// refuseIdentity makes the tokens of a user that is being deleted refused for good, if it
// has any.
func (t *tx) refuseIdentity(ctx context.Context, id string) error {
	_, err := t.exec(ctx, `INSERT INTO deleted_identities (oidc_issuer, oidc_subject, user_id, deleted_at)
		SELECT oidc_issuer, oidc_subject, id, ? FROM users WHERE id = ? AND deleting AND oidc_subject IS NOT NULL`, micros(time.Now()), id)
	if err != nil {
		return fmt.Errorf("cannot store that the user's tokens are refused: %w", err)
	}
	return nil
}

// InsertIdentity implements [access.IdentityStore].
func (s *accessStore) InsertIdentity(ctx context.Context, u access.User) error {
	if !storable(u.Issuer, u.Subject) {
		return errs.New(errs.Unauthenticated, "invalid_token", "the token is not valid: its subject has characters that cannot be stored")
	}
	return s.write(ctx, func(tx *tx) error {
		if err := tx.insertIdentity(ctx, u); err != nil {
			return err
		}
		return refused(ctx, tx, u.Issuer, u.Subject) // after it has waited for a deletion of the user before
	})
}

// AdmitIdentity implements [access.IdentityStore].
func (s *accessStore) AdmitIdentity(ctx context.Context, u access.User) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, idempotency.Of(ctx).Owner, u.ID); err != nil {
			return err
		}
		if err := tx.insertIdentity(ctx, u); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, "DELETE FROM deleted_identities WHERE oidc_issuer = ? AND oidc_subject = ?", u.Issuer, u.Subject); err != nil {
			return fmt.Errorf("cannot accept the user's tokens again: %w", err)
		}
		return nil
	})
}

func (t *tx) insertIdentity(ctx context.Context, u access.User) error {
	_, err := t.exec(ctx, "INSERT INTO users (id, name, role, disabled, created_at, updated_at, oidc_issuer, oidc_subject, oidc_issued_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		u.ID, u.Name, string(u.Role), u.Disabled, micros(u.CreatedAt), micros(u.UpdatedAt), u.Issuer, u.Subject, issuedAt(u))
	if violated(err) == "users_oidc_issuer_oidc_subject" {
		return errs.New(errs.Conflict, "identity_exists", "another user is bound to this subject of the issuer").WithCause(err)
	}
	return storedUser(u, err)
}
