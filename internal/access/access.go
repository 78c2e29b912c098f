// Package access authenticates callers: it holds API keys and the account that
// each key belongs to. Every other object is owned by an account, and every query
// names its owner.
//
// It does not read HTTP headers; the doors do, and pass the key to
// [Service.Authenticate].
package access

import "time"

// Accounts that the first start creates.
const (
	AdminID  = "acc_admin"
	SystemID = "acc_system" // hatchd itself; it has no key
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
	Rights  Rights
}

// Scope returns whose objects the caller sees: its account's.
func (p Principal) Scope() Scope { return Owner(p.OwnerID) }
