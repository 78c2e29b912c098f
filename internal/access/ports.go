package access

import (
	"context"
	"time"
)

// Store keeps accounts and keys.
type Store interface {
	// InsertAccount makes an account. No error if it is there already.
	InsertAccount(ctx context.Context, a Account) error

	// InsertKey makes a key. Errors: errs.Conflict with code key_exists when
	// the owner has a key of that name.
	InsertKey(ctx context.Context, k Key) error

	// ReplaceKey makes a key, and deletes the one with the same id if there is one.
	// Errors as InsertKey's.
	ReplaceKey(ctx context.Context, k Key) error

	// KeyByHash returns the key with this hash, whoever owns it.
	// Errors: errs.NotFound with code key_not_found.
	KeyByHash(ctx context.Context, hash []byte) (Key, error)

	// Keys returns the owner's keys, newest first.
	Keys(ctx context.Context, owner string) ([]Key, error)

	// DeleteKey deletes one key. Errors: errs.NotFound with code
	// key_not_found; errs.Conflict with code last_key when it is the owner's last.
	DeleteKey(ctx context.Context, owner, id string) error

	// TouchKeys stores when keys were last used, by key id. Unknown ids are no error.
	TouchKeys(ctx context.Context, used map[string]time.Time) error
}
