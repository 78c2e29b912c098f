package issuer

import (
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/hatchvm/hatch/internal/access"
)

// identity reads the claims of a verified token.
func (v *Verifier) identity(token *oidc.IDToken) (access.Identity, error) {
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return access.Identity{}, invalid("its claims cannot be read").WithCause(err)
	}
	if token.Subject == "" || len(token.Subject) > access.MaxSubject {
		return access.Identity{}, invalid("its subject is empty, or longer than %d bytes", access.MaxSubject)
	}
	issued := token.IssuedAt
	if issued.Unix() <= 0 {
		return access.Identity{}, invalid("it does not say when it was issued (iat)")
	}
	if now := time.Now(); issued.After(now) { // the issuer's clock is ahead
		issued = now
	}
	id := access.Identity{
		Issuer: v.cfg.Issuer, Subject: token.Subject,
		IssuedAt: issued.UTC().Truncate(time.Microsecond), ExpiresAt: token.Expiry,
	}
	if name, ok := claims[v.cfg.UserClaim].(string); ok && (v.cfg.UserClaim != EmailClaim || isTrue(claims["email_verified"])) {
		id.Name = name
	}
	for _, role := range texts(claimAt(claims, v.cfg.RoleClaim)) {
		id.Admin = id.Admin || slices.Contains(v.cfg.AdminValues, role)
	}
	return id, nil
}

// isTrue reads a claim that some issuers send as text.
func isTrue(claim any) bool { return claim == true || claim == "true" }

// claimAt returns a claim by its name, or by names with dots between, as realm_access.roles.
func claimAt(claims map[string]any, name string) any {
	if claim, ok := claims[name]; ok {
		return claim
	}
	first, rest, nested := strings.Cut(name, ".")
	inner, ok := claims[first].(map[string]any)
	if !nested || !ok {
		return nil
	}
	return claimAt(inner, rest)
}

// texts returns a claim that is a text, or a list of texts.
func texts(claim any) []string {
	switch claim := claim.(type) {
	case string:
		return []string{claim}
	case []any:
		var all []string
		for _, one := range claim {
			if text, ok := one.(string); ok {
				all = append(all, text)
			}
		}
		return all
	}
	return nil
}
