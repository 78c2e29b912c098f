package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
)

var _ access.Store = (*accessStore)(nil)

// userRow is a user as stored in its table.
type userRow struct {
	ID        string `db:"id"`
	Name      string `db:"name"`
	Role      string `db:"role"`
	Disabled  bool   `db:"disabled"`
	Deleting  bool   `db:"deleting"`
	CreatedAt int64  `db:"created_at"`
	UpdatedAt int64  `db:"updated_at"`
	Issuer    string `db:"oidc_issuer"`
	Subject   string `db:"oidc_subject"`
	IssuedAt  int64  `db:"oidc_issued_at"` // 0 for none
}

func (r userRow) user() access.User {
	u := access.User{
		ID: r.ID, Name: r.Name, Role: access.Role(r.Role), Disabled: r.Disabled, Deleting: r.Deleting,
		CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt), Issuer: r.Issuer, Subject: r.Subject,
	}
	if r.IssuedAt > 0 {
		u.RoleAt = fromMicros(r.IssuedAt)
	}
	return u
}

// issuedAt returns the column for when the token was made that a user's role is of.
func issuedAt(u access.User) int64 {
	if u.RoleAt.IsZero() {
		return 0
	}
	return micros(u.RoleAt)
}

// selectUser selects all users but hatchd's own.
const selectUser = "SELECT id, name, role, disabled, deleting, created_at, updated_at, COALESCE(oidc_issuer, '') AS oidc_issuer, COALESCE(oidc_subject, '') AS oidc_subject, oidc_issued_at FROM users WHERE id <> '" + access.SystemID + "'"

// InsertUser implements [access.UserStore].
func (s *accessStore) InsertUser(ctx context.Context, u access.User) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, idempotency.Of(ctx).Owner, u.ID); err != nil {
			return err
		}
		_, err := tx.exec(ctx, "INSERT INTO users (id, name, role, disabled, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
			u.ID, u.Name, string(u.Role), u.Disabled, micros(u.CreatedAt), micros(u.UpdatedAt))
		return storedUser(u, err)
	})
}

func storedUser(u access.User, err error) error {
	if violated(err) == "users_name" {
		return errs.New(errs.Conflict, "user_exists", "name: another user is called %q", u.Name).
			WithField("name").WithHint("give another name").WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("cannot store the user: %w", err)
	}
	return nil
}

// User implements [access.UserStore].
func (s *accessStore) User(ctx context.Context, idOrName string) (access.User, error) {
	if !storable(idOrName) {
		return access.User{}, errNoUser
	}
	var row userRow
	found, err := get(ctx, s.reads, &row, selectUser+" AND (id = ? OR name = ?) ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END LIMIT 1", idOrName, idOrName, idOrName)
	if err != nil {
		return access.User{}, fmt.Errorf("cannot read the user: %w", err)
	}
	if !found {
		return access.User{}, errNoUser
	}
	return row.user(), nil
}

// Users implements [access.UserStore].
func (s *accessStore) Users(ctx context.Context) ([]access.User, error) {
	var rows []userRow
	if err := selectAll(ctx, s.reads, &rows, selectUser+" ORDER BY created_at DESC, id DESC"); err != nil {
		return nil, fmt.Errorf("cannot list users: %w", err)
	}
	users := make([]access.User, len(rows))
	for i, row := range rows {
		users[i] = row.user()
	}
	return users, nil
}

// UpdateUser implements [access.UserStore].
func (s *accessStore) UpdateUser(ctx context.Context, id string, change func(*access.User) error) (u access.User, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if u, err = tx.lockUser(ctx, id); err != nil {
			return err
		}
		admins, err := tx.usableAdmins(ctx)
		if err != nil {
			return err
		}
		before := u
		if err := change(&u); err != nil {
			return err
		}
		if before.RoleAt = u.RoleAt; u != before { // a token with the same role is no change that clients see
			u.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
		}
		_, err = tx.exec(ctx, "UPDATE users SET name = ?, role = ?, disabled = ?, updated_at = ?, oidc_issued_at = ? WHERE id = ?",
			u.Name, string(u.Role), u.Disabled, micros(u.UpdatedAt), issuedAt(u), id)
		if err := storedUser(u, err); err != nil {
			return err
		}
		return tx.keepAnAdmin(ctx, admins)
	})
	return u, err
}

// lockUsers blocks other transactions that call it until this one ends: two of them
// cannot each leave the other's admin as the last one.
func (t *tx) lockUsers(ctx context.Context) error {
	_, err := t.exec(ctx, "UPDATE users SET name = name WHERE id = ?", access.SystemID)
	if err != nil {
		return fmt.Errorf("cannot lock the users: %w", err)
	}
	return nil
}

// lockUser locks the users and reads one.
func (t *tx) lockUser(ctx context.Context, id string) (access.User, error) {
	if err := t.lockUsers(ctx); err != nil {
		return access.User{}, err
	}
	var row userRow
	found, err := t.get(ctx, &row, selectUser+" AND id = ?", id)
	if err != nil {
		return access.User{}, fmt.Errorf("cannot read the user: %w", err)
	}
	if !found {
		return access.User{}, errNoUser
	}
	return row.user(), nil
}

// usableAdmins counts the admins who are enabled and have a valid key for all networks.
func (t *tx) usableAdmins(ctx context.Context) (n int, err error) {
	_, err = t.get(ctx, &n, `SELECT COUNT(*) FROM users WHERE role = ? AND NOT disabled AND EXISTS
		(SELECT 1 FROM api_keys WHERE owner_id = users.id AND scopes = ? AND allowed_cidrs = '' AND (expires_at IS NULL OR expires_at > ?))`,
		string(access.RoleAdmin), access.Admin.String(), micros(time.Now()))
	if err != nil {
		return 0, fmt.Errorf("cannot count the admins: %w", err)
	}
	return n, nil
}

// keepAnAdmin refuses a change that leaves no usable admin, of those before.
func (t *tx) keepAnAdmin(ctx context.Context, before int) error {
	n, err := t.usableAdmins(ctx)
	if err == nil && n == 0 && before > 0 {
		err = errs.New(errs.Conflict, "last_admin", "cannot do this: no admin would be left who is enabled and has a key with the scope admin").
			WithHint("make another admin, and a key for it, first")
	}
	return err
}

// RestoreAdmin implements [access.UserStore].
func (s *accessStore) RestoreAdmin(ctx context.Context) (changed bool, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.lockUsers(ctx); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "UPDATE users SET role = ?, disabled = ? WHERE id = ? AND (role <> ? OR disabled)",
			string(access.RoleAdmin), false, access.AdminID, string(access.RoleAdmin))
		changed = n > 0
		return err
	})
	return changed, err
}

const countOwned = `SELECT
	(SELECT COUNT(*) FROM vms WHERE owner_id = ?) AS vms,
	(SELECT COUNT(*) FROM snapshots WHERE owner_id = ?) AS snapshots,
	(SELECT COUNT(*) FROM images WHERE owner_id = ?) AS images,
	(SELECT COUNT(*) FROM templates WHERE owner_id = ?) AS templates,
	(SELECT COUNT(*) FROM webhooks WHERE owner_id = ?) AS webhooks,
	(SELECT COUNT(*) FROM routes WHERE owner_id = ?) AS routes,
	(SELECT COUNT(*) FROM api_keys WHERE owner_id = ?) AS keys,
	(SELECT COUNT(*) FROM vms WHERE owner_id NOT IN (?, ?) AND image_id IN (SELECT id FROM images WHERE owner_id = ?)) +
	(SELECT COUNT(*) FROM snapshots WHERE owner_id NOT IN (?, ?) AND image_id IN (SELECT id FROM images WHERE owner_id = ?)) AS used`

func (t *tx) owned(ctx context.Context, id string) (o access.Owned, err error) {
	if _, err = t.get(ctx, &o, countOwned, id, id, id, id, id, id, id, id, access.SystemID, id, id, access.SystemID, id); err != nil {
		return o, fmt.Errorf("cannot count what the user owns: %w", err)
	}
	return o, nil
}

// BeginDeletion implements [access.UserStore].
func (s *accessStore) BeginDeletion(ctx context.Context, id string, check func(access.Owned) error) (u access.User, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if u, err = tx.lockUser(ctx, id); err != nil {
			return err
		}
		admins, err := tx.usableAdmins(ctx)
		if err != nil {
			return err
		}
		owned, err := tx.owned(ctx, id)
		if err != nil {
			return err
		}
		if err := check(owned); err != nil {
			return err
		}
		u.Disabled, u.Deleting, u.UpdatedAt = true, true, time.Now().UTC().Truncate(time.Microsecond)
		if _, err := tx.exec(ctx, "UPDATE users SET disabled = ?, deleting = ?, updated_at = ? WHERE id = ?", true, true, micros(u.UpdatedAt), id); err != nil {
			return fmt.Errorf("cannot store that the user is being deleted: %w", err)
		}
		if _, err := tx.exec(ctx, "DELETE FROM api_keys WHERE owner_id = ?", id); err != nil {
			return fmt.Errorf("cannot delete the user's keys: %w", err)
		}
		return tx.keepAnAdmin(ctx, admins)
	})
	return u, err
}

// EndDeletion implements [access.UserStore].
func (s *accessStore) EndDeletion(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *tx) error {
		for _, table := range []string{"api_keys", "idempotent_requests", "events"} {
			if _, err := tx.exec(ctx, "DELETE FROM "+table+" WHERE owner_id = ?", id); err != nil {
				return fmt.Errorf("cannot delete the %s of the user: %w", table, err)
			}
		}
		if err := tx.refuseIdentity(ctx, id); err != nil {
			return err
		}
		_, err := tx.exec(ctx, "DELETE FROM users WHERE id = ? AND deleting", id)
		if referenceFailed(err) {
			return errs.New(errs.Conflict, "user_owns_objects", "cannot delete the user: it owns objects").
				WithHint("delete it again, with cascade").WithCause(err)
		}
		if err != nil {
			return fmt.Errorf("cannot delete the user: %w", err)
		}
		return nil
	})
}

var errNoUser = errs.New(errs.NotFound, "user_not_found", "there is no such user").WithHint("GET /users lists them")
