// Package access authenticates callers: it holds users and their API keys. Every
// other object is owned by a user, and every query names its owner.
//
// It does not read HTTP headers; the doors do, and pass the key to
// [Service.Authenticate]. It does not know what else a user owns: [Belongings] does.
package access

import (
	"net/netip"
	"slices"
	"time"
)

// Users that the first start creates.
const (
	AdminID  = "acc_admin"
	SystemID = "acc_system" // hatchd itself; it has no key, and no caller sees it
)

// Role is what a user may do beside using its own objects.
type Role string

// The roles.
const (
	RoleAdmin  Role = "admin"  // manages users, and reads and exposes the host
	RoleMember Role = "member" // uses its own objects
)

// rights returns the most that a key of a user with this role can be used for.
func (r Role) rights() Rights {
	if r == RoleAdmin {
		return AllRights
	}
	all := slices.DeleteFunc(EveryRight(), func(r Right) bool {
		return r == Admin || r.Noun == Users || r == Write(Quotas)
	})
	return RightsOf(all...)
}

// User owns objects.
type User struct {
	ID, Name             string
	Role                 Role
	Disabled             bool // its keys are refused; its VMs run on
	Deleting             bool // its objects are being deleted, and it with the last of them
	CreatedAt, UpdatedAt time.Time

	Issuer, Subject string    // of the tokens of the bearer that it is; "" for one without tokens
	RoleAt          time.Time // when the issuer made the token that the role is of; zero for none
}

// Key is an API key as stored: never the secret, only its hash.
type Key struct {
	ID, OwnerID, Name string
	Note              string
	Prefix            string         // first characters of the secret, to recognize it by; "" if not known
	Hash              []byte         // SHA-256 of the whole secret
	Rights            Rights         // as they were given; the user's role may allow fewer
	Allowed           []netip.Prefix // networks of clients; nil for all
	CreatedAt         time.Time
	ExpiresAt         *time.Time // nil for never
	LastUsedAt        *time.Time
	MadeBy            string // id of the key that it was made with, which may be gone; "" for none
}

// Principal is an authenticated caller.
type Principal struct {
	OwnerID   string // user whose objects the caller sees
	UserName  string
	Role      Role
	KeyID     string // "" for a caller that has authenticated without a key
	KeyName   string
	Rights    Rights
	ExpiresAt time.Time // of the key; zero for never

	seen uint64 // number of revocations before the caller was authenticated
}

// Scope returns whose objects the caller sees: its user's, also for an admin.
func (p Principal) Scope() Scope { return Owner(p.OwnerID) }

// Manager returns the scope for images and templates, of which an admin may also change
// those of other users that it sees.
func (p Principal) Manager() Scope {
	return Scope{ownerID: p.OwnerID, manages: p.Rights.Include(Admin)}
}
