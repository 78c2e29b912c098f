package api

// CreateKey is the body of POST /keys.
type CreateKey struct {
	Name string `json:"name" minLength:"1" maxLength:"63" doc:"What the key is for."`
}

// Key is an API key. Only the response to POST /keys has the secret.
type Key struct {
	ID         string `json:"id" example:"key_abc123def456"`
	Name       string `json:"name"`
	Secret     string `json:"secret,omitempty" doc:"The key itself. Only in the response to POST /keys."`
	CreatedAt  Time   `json:"created_at"`
	LastUsedAt *Time  `json:"last_used_at,omitempty"`
	Current    bool   `json:"current,omitempty" doc:"Whether this request was made with the key. Only in lists."`
}
