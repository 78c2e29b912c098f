// Package access authenticates callers: it holds users and their API keys. Every
// other object is owned by a user, and every query names its owner.
//
// It does not read HTTP headers; the doors do, and pass the key to
// [Service.Authenticate].
package access

import "time"

// Users that the first start creates.
const (
	AdminID  = "acc_admin"
	SystemID = "acc_system" // hatchd itself; it has no key
)

// Role is what a user may do beside using its own objects.
type Role string

// The roles.
const (
	RoleAdmin  Role = "admin"  // manages users, and reads and exposes the host
	RoleMember Role = "member" // uses its own objects
)

// User owns objects.
type User struct {
	ID, Name             string
	Role                 Role
	Disabled             bool
	CreatedAt, UpdatedAt time.Time
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
	OwnerID  string // user whose objects the caller sees
	UserName string
	Role     Role
	KeyID    string // "" for a caller that has authenticated without a key
	KeyName  string
	Rights   Rights
}

// Scope returns whose objects the caller sees: its user's, also for an admin.
func (p Principal) Scope() Scope { return Owner(p.OwnerID) }
