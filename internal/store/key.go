package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
)

// keyRow is an API key as stored in its table.
type keyRow struct {
	ID         string        `db:"id"`
	OwnerID    string        `db:"owner_id"`
	Name       string        `db:"name"`
	Hash       []byte        `db:"hash"`
	CreatedAt  int64         `db:"created_at"`
	LastUsedAt sql.NullInt64 `db:"last_used_at"`
	Note       string        `db:"note"`
	Prefix     string        `db:"prefix"`
	Scopes     string        `db:"scopes"`
	ExpiresAt  sql.NullInt64 `db:"expires_at"`
	Allowed    string        `db:"allowed_cidrs"`
	MadeBy     string        `db:"made_by"`
}

// key returns the key of a row. Scopes that this version does not know are no rights.
func (r keyRow) key() (access.Key, error) {
	k := access.Key{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name, Note: r.Note, Prefix: r.Prefix, Hash: r.Hash, MadeBy: r.MadeBy,
		CreatedAt: fromMicros(r.CreatedAt), ExpiresAt: optionalTime(r.ExpiresAt), LastUsedAt: optionalTime(r.LastUsedAt),
	}
	for scope := range strings.FieldsSeq(r.Scopes) {
		if right, ok := access.ParseRight(scope); ok {
			k.Rights |= access.RightsOf(right)
		}
	}
	for text := range strings.FieldsSeq(r.Allowed) {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return access.Key{}, fmt.Errorf("cannot read the networks of key %s: %w", r.ID, err)
		}
		k.Allowed = append(k.Allowed, network)
	}
	return k, nil
}

const (
	keyColumns = "id, owner_id, name, hash, created_at, last_used_at, note, prefix, scopes, expires_at, allowed_cidrs, made_by"
	selectKey  = "SELECT " + keyColumns + " FROM api_keys"
)

// InsertKey implements [access.Store].
func (s *accessStore) InsertKey(ctx context.Context, k access.Key) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, idempotency.Of(ctx).Owner, k.ID); err != nil {
			return err
		}
		if _, err := tx.lockUser(ctx, k.OwnerID); err != nil {
			return err
		}
		if err := lockMaker(ctx, tx, k.MadeBy); err != nil {
			return err
		}
		return tx.insertKey(ctx, k)
	})
}

// lockMaker keeps the key that another is made with from being deleted until the end of
// the transaction: a revoked key must make none. "" is no key.
func lockMaker(ctx context.Context, tx *tx, id string) error {
	if id == "" {
		return nil
	}
	n, err := tx.exec(ctx, "UPDATE api_keys SET name = name WHERE id = ?", id)
	if err != nil {
		return fmt.Errorf("cannot lock the key: %w", err)
	}
	if n == 0 {
		return access.ErrRevoked
	}
	return nil
}

// ReplaceKey implements [access.Store].
func (s *accessStore) ReplaceKey(ctx context.Context, k access.Key) error {
	return s.write(ctx, func(tx *tx) error {
		if _, err := tx.exec(ctx, "DELETE FROM api_keys WHERE id = ?", k.ID); err != nil {
			return fmt.Errorf("cannot replace the key: %w", err)
		}
		return tx.insertKey(ctx, k)
	})
}

func (t *tx) insertKey(ctx context.Context, k access.Key) error {
	_, err := t.exec(ctx, "INSERT INTO api_keys ("+keyColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		k.ID, k.OwnerID, k.Name, k.Hash, micros(k.CreatedAt), optionalMicros(k.LastUsedAt),
		k.Note, k.Prefix, joined(k.Rights.List()), optionalMicros(k.ExpiresAt), joined(k.Allowed), k.MadeBy)
	if violated(err) == "api_keys_owner_id_name" {
		return errs.New(errs.Conflict, "key_exists", "name: another key is called %q", k.Name).
			WithField("name").WithHint("give another name, or delete that key").WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("cannot store the key: %w", err)
	}
	return nil
}

// joined returns a list with a space between two.
func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, one := range list {
		texts[i] = one.String()
	}
	return strings.Join(texts, " ")
}

// KeyByHash implements [access.Store].
func (s *accessStore) KeyByHash(ctx context.Context, hash []byte) (k access.Key, u access.User, err error) {
	var row keyRow
	var user userRow
	err = s.read(ctx, func(q querier) error {
		found, err := get(ctx, q, &row, selectKey+" WHERE hash = ?", hash)
		if err == nil && found {
			found, err = get(ctx, q, &user, selectUser+" AND id = ?", row.OwnerID)
		}
		if err != nil {
			return fmt.Errorf("cannot read a key: %w", err)
		}
		if !found {
			return errNoKey
		}
		return nil
	})
	if err != nil {
		return k, u, err
	}
	k, err = row.key()
	return k, user.user(), err
}

// Keys implements [access.Store].
func (s *accessStore) Keys(ctx context.Context, scope access.Scope) ([]access.Key, error) {
	var rows []keyRow
	owned, args := inScope(scope)
	if err := selectAll(ctx, s.reads, &rows, selectKey+" WHERE "+owned+" ORDER BY created_at DESC, id DESC", args...); err != nil {
		return nil, fmt.Errorf("cannot list keys: %w", err)
	}
	keys := make([]access.Key, len(rows))
	for i, row := range rows {
		var err error
		if keys[i], err = row.key(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// DeleteKey implements [access.Store].
func (s *accessStore) DeleteKey(ctx context.Context, scope access.Scope, id, keep string) error {
	if !storable(id) {
		return errNoKey
	}
	return s.write(ctx, func(tx *tx) error {
		if err := tx.lockUsers(ctx); err != nil { // two deletes cannot remove the last two keys
			return err
		}
		admins, err := tx.usableAdmins(ctx)
		if err != nil {
			return err
		}
		var owner string
		owned, args := inScope(scope)
		found, err := tx.get(ctx, &owner, "SELECT owner_id FROM api_keys WHERE id = ? AND "+owned, append([]any{id}, args...)...)
		if err != nil {
			return fmt.Errorf("cannot read the key: %w", err)
		}
		if !found {
			return errNoKey
		}
		if _, err := tx.exec(ctx, "DELETE FROM api_keys WHERE id = ?", id); err != nil {
			return fmt.Errorf("cannot delete the key: %w", err)
		}
		var left int
		if _, err := tx.get(ctx, &left, "SELECT COUNT(*) FROM api_keys WHERE owner_id = ?", owner); err != nil {
			return fmt.Errorf("cannot count the keys: %w", err)
		}
		if left == 0 && owner == keep {
			return errs.New(errs.Conflict, "last_key", "cannot delete the key: it is the last one, and without a key no client could create another").
				WithHint("create another key first")
		}
		return tx.keepAnAdmin(ctx, admins)
	})
}

// TouchKeys implements [access.Store].
func (s *accessStore) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	return s.write(ctx, func(tx *tx) error {
		for id, at := range used {
			if _, err := tx.exec(ctx, "UPDATE api_keys SET last_used_at = ? WHERE id = ?", micros(at), id); err != nil {
				return fmt.Errorf("cannot store a key's last use: %w", err)
			}
		}
		return nil
	})
}

var errNoKey = errs.New(errs.NotFound, "key_not_found", "there is no such API key").WithHint("GET /keys lists them")
