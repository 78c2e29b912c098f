package api

// Roles of users.
const (
	RoleAdmin  = "admin"
	RoleMember = "member"
)

// CreateUser is the body of POST /users.
type CreateUser struct {
	Name string `json:"name" minLength:"1" maxLength:"63" doc:"Unique. Lower-case letters, digits, '.', '_', '@' and '-'." example:"alice"`
	Role string `json:"role,omitempty" enum:"member,admin" default:"member" doc:"member: uses its own objects. admin: also manages users, and reads and exposes the host."`

	OIDCSubject string `json:"oidc_subject,omitempty" maxLength:"255" doc:"Subject (sub) of the trusted issuer whose tokens are to be the user's, also one whose user was deleted. Needs the scope admin. The role is that of its tokens."`
}

// UpdateUser is the body of PATCH /users/{id}, a JSON merge patch: absent fields stay.
type UpdateUser struct {
	Name     *string `json:"name,omitempty" minLength:"1" maxLength:"63" doc:"Unique."`
	Role     *string `json:"role,omitempty" enum:"member,admin"`
	Disabled *bool   `json:"disabled,omitempty" doc:"Whether its keys are refused. Its VMs run on."`
}

// User owns objects, and has API keys.
type User struct {
	ID        string `json:"id" example:"usr_abc123def456"`
	Name      string `json:"name"`
	Role      string `json:"role" enum:"member,admin"`
	Disabled  bool   `json:"disabled"`
	Deleting  bool   `json:"deleting,omitempty" doc:"Whether its objects are being deleted, and the user with the last of them."`
	CreatedAt Time   `json:"created_at"`
	UpdatedAt Time   `json:"updated_at"`

	OIDCIssuer  string `json:"oidc_issuer,omitempty" doc:"Issuer of the user's tokens; absent for a user that has none."`
	OIDCSubject string `json:"oidc_subject,omitempty" doc:"The issuer's name of the user; absent for a user that has no tokens."`
}

// Me is who the caller of GET /me is.
type Me struct {
	User      MeUser   `json:"user"`
	Role      string   `json:"role" enum:"member,admin"`
	Key       *MeKey   `json:"key,omitempty" doc:"Absent if the caller has authenticated without a key."`
	Scopes    []string `json:"scopes" nullable:"false" doc:"What the key can be used for. The scope admin includes all others."`
	ExpiresAt *Time    `json:"expires_at,omitempty" doc:"End of the key; absent if it has none."`
}

// MeUser is the user of a caller.
type MeUser struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// MeKey is the key of a caller.
type MeKey struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}
