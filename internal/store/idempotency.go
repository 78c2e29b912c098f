package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/idempotency"
)

// requestStore stores idempotency keys.
type requestStore struct{ *database }

var _ idempotency.Store = (*Store)(nil)

// Made implements [idempotency.Store].
func (s *requestStore) Made(ctx context.Context, r idempotency.Request) (ids []string, err error) {
	if r.Key == "" {
		return nil, nil
	}
	var rows []struct {
		ObjectID string `db:"object_id"`
		Hash     string `db:"hash"`
	}
	err = selectAll(ctx, s.reads, &rows, "SELECT object_id, hash FROM idempotent_requests WHERE owner_id = ? AND key = ? AND created_at >= ? ORDER BY number",
		r.Owner, r.Key, oldestKey())
	if err != nil {
		return nil, fmt.Errorf("cannot look up an idempotency key: %w", err)
	}
	for _, row := range rows {
		if row.Hash != r.Hash {
			return nil, idempotency.Reused()
		}
		ids = append(ids, row.ObjectID)
	}
	return ids, nil
}

// Remember implements [idempotency.Store].
func (s *requestStore) Remember(ctx context.Context, id string) error {
	r := idempotency.Of(ctx)
	if r.Key == "" {
		return nil
	}
	return s.write(ctx, func(tx *tx) error { return tx.remember(ctx, r.Owner, id) })
}

// Forget implements [idempotency.Store].
func (s *requestStore) Forget(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *tx) error { return tx.forgetKey(ctx, id) })
}

// remember stores the key of the request that ctx carries, if it has one, for the
// objects that it makes, and deletes keys that are older than their lifetime. It comes
// first in a transaction: a request that lost a race is repeated, and has no other
// error, such as that of a name that is taken. What hatchd makes for itself meanwhile
// has another owner.
func (t *tx) remember(ctx context.Context, owner string, ids ...string) error {
	r := idempotency.Of(ctx)
	if r.Key == "" || r.Owner != owner {
		return nil
	}
	if _, err := t.exec(ctx, "DELETE FROM idempotent_requests WHERE created_at < ?", oldestKey()); err != nil {
		return fmt.Errorf("cannot delete old idempotency keys: %w", err)
	}
	for i, id := range ids {
		_, err := t.exec(ctx, "INSERT INTO idempotent_requests (owner_id, key, number, object_id, hash, created_at) VALUES (?, ?, ?, ?, ?, ?)",
			r.Owner, r.Key, i, id, r.Hash, micros(time.Now()))
		if violated(err) == "idempotent_requests_owner_id_key_number" {
			return idempotency.Used(err)
		}
		if err != nil {
			return fmt.Errorf("cannot store the idempotency key: %w", err)
		}
	}
	return nil
}

// forgetKey frees the key of an object that was never made whole, so that the request
// can be repeated.
func (t *tx) forgetKey(ctx context.Context, id string) error {
	if _, err := t.exec(ctx, "DELETE FROM idempotent_requests WHERE object_id = ?", id); err != nil {
		return fmt.Errorf("cannot free an idempotency key: %w", err)
	}
	return nil
}

func oldestKey() int64 { return micros(time.Now().Add(-idempotency.Lifetime)) }
