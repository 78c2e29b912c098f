package access

import (
	"context"
	"time"
)

// Store stores users and keys.
type Store interface {
	UserStore
	IdentityStore

	// InsertKey creates a key. Errors: errs.Conflict with code key_exists if the
	// owner has a key with that name; errs.NotFound with code user_not_found;
	// [ErrRevoked] if the key that it is made with is gone.
	InsertKey(ctx context.Context, k Key) error

	// ReplaceKey creates a key, and deletes the one with the same id if there is one.
	// It returns the errors of InsertKey.
	ReplaceKey(ctx context.Context, k Key) error

	// KeyByHash returns the key with this hash, of any owner, and its owner.
	// Errors: errs.NotFound with code key_not_found.
	KeyByHash(ctx context.Context, hash []byte) (Key, User, error)

	// Keys returns the keys in scope, newest first.
	Keys(ctx context.Context, scope Scope) ([]Key, error)

	// DeleteKey deletes one key. Errors: errs.NotFound with code
	// key_not_found; errs.Conflict with code last_key if it is the last one of keep,
	// or with code last_admin.
	DeleteKey(ctx context.Context, scope Scope, id, keep string) error

	// TouchKeys stores when keys were last used, by key id. Unknown ids are no error.
	TouchKeys(ctx context.Context, used map[string]time.Time) error
}

// UserStore stores users. Its methods do not see hatchd's own user, but for InsertUser. A
// change that would leave no admin who is enabled and has a valid key is refused:
// errs.Conflict with code last_admin.
type UserStore interface {
	// InsertUser creates a user. It is no error if there is one with the id.
	// Errors: errs.Conflict with code user_exists if the name is taken.
	InsertUser(ctx context.Context, u User) error

	// User returns the user with this id or, failing that, this name.
	// Errors: errs.NotFound with code user_not_found.
	User(ctx context.Context, idOrName string) (User, error)

	// Users returns all users, newest first.
	Users(ctx context.Context) ([]User, error)

	// UpdateUser changes name, role, which token that is of, and whether a user is
	// disabled, unless change returns an error.
	UpdateUser(ctx context.Context, id string, change func(*User) error) (User, error)

	// RestoreAdmin enables the user AdminID and makes it an admin, and reports whether it
	// was not.
	RestoreAdmin(ctx context.Context) (changed bool, err error)

	// BeginDeletion marks a user as being deleted, disables it and deletes its keys,
	// unless check returns an error for what it owns.
	BeginDeletion(ctx context.Context, id string, check func(Owned) error) (User, error)

	// EndDeletion deletes a user that is being deleted, with its keys and events. The
	// issuer's subject that it is bound to is refused from then on.
	// Errors: errs.Conflict with code user_owns_objects.
	EndDeletion(ctx context.Context, id string) error
}

// IdentityStore stores which users are the bearers of an issuer's tokens.
type IdentityStore interface {
	// UserByIdentity returns the user that an issuer's subject is bound to.
	// Errors: errs.NotFound with code user_not_found; errs.Unauthenticated with code
	// user_deleted if that user was deleted.
	UserByIdentity(ctx context.Context, issuer, subject string) (User, error)

	// InsertIdentity creates a user that is bound to an issuer's subject. Errors:
	// errs.Conflict with code user_exists if the name is taken, or identity_exists;
	// errs.Unauthenticated with code user_deleted.
	InsertIdentity(ctx context.Context, u User) error

	// AdmitIdentity is InsertIdentity also for a subject whose user was deleted.
	AdmitIdentity(ctx context.Context, u User) error
}

// Owned is how many objects a user owns.
type Owned struct {
	VMs       int `db:"vms"`
	Snapshots int `db:"snapshots"`
	Images    int `db:"images"`
	Templates int `db:"templates"`
	Webhooks  int `db:"webhooks"`
	Routes    int `db:"routes"`
	Keys      int `db:"keys"`
	UsedHere  int `db:"used"` // VMs and snapshots of other users that were made from its images
}

// Belongings deletes what users own.
type Belongings interface {
	// DeleteOf deletes all objects of a user but its keys, in an order in which no
	// object is in use any more.
	DeleteOf(ctx context.Context, userID string) error
}
