package api

// CreateKey is the body of POST /keys.
type CreateKey struct {
	Name         string   `json:"name" minLength:"1" maxLength:"63" doc:"What the key is for. Unique per user."`
	Note         string   `json:"note,omitempty" maxLength:"1024" doc:"Anything about the key, such as where it is used."`
	Scopes       []string `json:"scopes,omitempty" minItems:"1" maxItems:"64" doc:"What the key can be used for: NOUN:read or NOUN:write, or admin. To write does not include to read. By default all scopes of the key that makes this request, which has to have each that is given." example:"[\"vms:read\",\"exec:write\"]"`
	ExpiresAt    *Time    `json:"expires_at,omitempty" doc:"From then on the key is refused. By default that of the key that makes this request."`
	AllowedCIDRs []string `json:"allowed_cidrs,omitempty" minItems:"1" maxItems:"32" doc:"Networks or addresses of clients that may use the key. By default those of the key that makes this request."`
	E2B          bool     `json:"e2b,omitempty" doc:"Whether the secret is to have the form that the client libraries of E2B require."`
	UserID       string   `json:"user_id,omitempty" maxLength:"64" doc:"ID or name of the user that the key is for; for admins only. By default the caller."`
}

// Key is an API key. Only the response to POST /keys has the secret.
type Key struct {
	ID           string   `json:"id" example:"key_abc123def456"`
	Name         string   `json:"name"`
	Note         string   `json:"note,omitempty"`
	UserID       string   `json:"user_id"`
	Prefix       string   `json:"prefix,omitempty" doc:"The first characters of the secret, to recognize it by; absent for keys of earlier versions, and for that of HATCH_API_KEY."`
	Secret       string   `json:"secret,omitempty" doc:"The key itself. Only in the response to POST /keys."`
	Scopes       []string `json:"scopes" nullable:"false" doc:"What the key can be used for, as far as the role of its user allows. The scope admin includes all others."`
	AllowedCIDRs []string `json:"allowed_cidrs,omitempty" nullable:"false" doc:"Networks of clients that may use the key; absent for all."`
	CreatedBy    string   `json:"created_by,omitempty" doc:"Id of the key that this one was made with, which may be deleted; absent for keys that were made without one."`
	CreatedAt    Time     `json:"created_at"`
	ExpiresAt    *Time    `json:"expires_at,omitempty" doc:"From then on the key is refused; absent for never."`
	LastUsedAt   *Time    `json:"last_used_at,omitempty"`
	Current      bool     `json:"current,omitempty" doc:"Whether this request was made with the key. Only in lists."`
}
