package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// keyRow is an API key as stored in its table.
type keyRow struct {
	ID         string        `db:"id"`
	OwnerID    string        `db:"owner_id"`
	Name       string        `db:"name"`
	Hash       []byte        `db:"hash"`
	CreatedAt  int64         `db:"created_at"`
	LastUsedAt sql.NullInt64 `db:"last_used_at"`
}

func (r keyRow) key() access.Key {
	return access.Key{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name, Hash: r.Hash,
		CreatedAt: fromMicros(r.CreatedAt), LastUsedAt: optionalTime(r.LastUsedAt),
	}
}

const selectKey = "SELECT id, owner_id, name, hash, created_at, last_used_at FROM api_keys"

// InsertKey implements [access.Store].
func (s *accessStore) InsertKey(ctx context.Context, k access.Key) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, k.OwnerID, k.ID); err != nil {
			return err
		}
		return tx.insertKey(ctx, k)
	})
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
	_, err := t.exec(ctx, "INSERT INTO api_keys (id, owner_id, name, hash, created_at, last_used_at) VALUES (?, ?, ?, ?, ?, ?)",
		k.ID, k.OwnerID, k.Name, k.Hash, micros(k.CreatedAt), optionalMicros(k.LastUsedAt))
	if violated(err) == "api_keys_owner_id_name" {
		return errs.New(errs.Conflict, "key_exists", "name: another key is called %q", k.Name).
			WithField("name").WithHint("give another name, or delete that key").WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("cannot store the key: %w", err)
	}
	return nil
}

// KeyByHash implements [access.Store].
func (s *accessStore) KeyByHash(ctx context.Context, hash []byte) (access.Key, error) {
	var row keyRow
	found, err := get(ctx, s.reads, &row, selectKey+" WHERE hash = ?", hash)
	if err != nil {
		return access.Key{}, fmt.Errorf("cannot read a key: %w", err)
	}
	if !found {
		return access.Key{}, errNoKey
	}
	return row.key(), nil
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
		keys[i] = row.key()
	}
	return keys, nil
}

// DeleteKey implements [access.Store].
func (s *accessStore) DeleteKey(ctx context.Context, scope access.Scope, id string) error {
	if !storable(id) {
		return errNoKey
	}
	return s.write(ctx, func(tx *tx) error {
		var owner string
		owned, args := inScope(scope)
		found, err := tx.get(ctx, &owner, "SELECT owner_id FROM api_keys WHERE id = ? AND "+owned, append([]any{id}, args...)...)
		if err != nil {
			return fmt.Errorf("cannot read the key: %w", err)
		}
		if !found {
			return errNoKey
		}
		// Writing the account serializes deletes of one owner's keys, so that two
		// concurrent deletes cannot remove the last two keys.
		if _, err := tx.exec(ctx, "UPDATE accounts SET name = name WHERE id = ?", owner); err != nil {
			return fmt.Errorf("cannot lock the account: %w", err)
		}
		n, err := tx.exec(ctx, "DELETE FROM api_keys WHERE id = ?", id)
		if err != nil {
			return fmt.Errorf("cannot delete the key: %w", err)
		}
		if n == 0 {
			return errNoKey
		}
		var left int
		if _, err := tx.get(ctx, &left, "SELECT COUNT(*) FROM api_keys WHERE owner_id = ?", owner); err != nil {
			return fmt.Errorf("cannot count the keys: %w", err)
		}
		if left == 0 {
			return errs.New(errs.Conflict, "last_key", "cannot delete the key: it is the last one, and without a key no client could create another").
				WithHint("create another key first")
		}
		return nil
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
