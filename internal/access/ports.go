package access

import (
	"context"
	"time"
)

// Store stores users and keys.
type Store interface {
	// InsertUser creates a user. It is no error if the user exists.
	InsertUser(ctx context.Context, u User) error

	// InsertKey creates a key. Errors: errs.Conflict with code key_exists if the
	// owner has a key with that name.
	InsertKey(ctx context.Context, k Key) error

	// ReplaceKey creates a key, and deletes the one with the same id if there is one.
	// It returns the errors of InsertKey.
	ReplaceKey(ctx context.Context, k Key) error

	// KeyByHash returns the key with this hash, of any owner.
	// Errors: errs.NotFound with code key_not_found.
	KeyByHash(ctx context.Context, hash []byte) (Key, error)

	// Keys returns the keys in scope, newest first.
	Keys(ctx context.Context, scope Scope) ([]Key, error)

	// DeleteKey deletes one key. Errors: errs.NotFound with code
	// key_not_found; errs.Conflict with code last_key if it is the owner's last.
	DeleteKey(ctx context.Context, scope Scope, id string) error

	// TouchKeys stores when keys were last used, by key id. Unknown ids are no error.
	TouchKeys(ctx context.Context, used map[string]time.Time) error
}
