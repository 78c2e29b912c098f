// Package access is about who may call: API keys and the account each one
// belongs to. Every other noun is owned by an account, and every query names
// its owner.
//
// It does not read HTTP headers; doors do, and hand the key to
// [Service.Authenticate]. Users, quotas and scopes will live here.
package access

import "time"

// Accounts that the first start creates.
const (
	AdminID  = "acc_admin"
	SystemID = "acc_system" // hatchd itself: it has no key
)

// Account owns objects.
type Account struct {
	ID, Name  string
	CreatedAt time.Time
}

// Key is an API key as stored: never the secret, only its hash.
type Key struct {
	ID, OwnerID, Name string
	Hash              []byte // SHA-256 of the whole secret
	CreatedAt         time.Time
	LastUsedAt        *time.Time
}

// Principal is an authenticated caller.
type Principal struct {
	OwnerID string // account whose objects the caller sees
	KeyID   string
	KeyName string
}
