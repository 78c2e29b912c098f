package config

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
)

// OIDC says whose tokens are trusted beside API keys.
type OIDC struct {
	Issuer      string   // URL; "" means none
	Audience    string   // not "" with an issuer
	UserClaim   string   // not ""
	RoleClaim   string   // "" means that all bearers are members
	AdminValues []string // of RoleClaim; empty exactly if that is ""
}

// oidcSettings are those of the issuer of tokens.
var oidcSettings = []Setting{
	{
		Name: "oidc_issuer", Env: "HATCH_OIDC_ISSUER",
		Doc: "URL of an OpenID Connect issuer, exactly as its tokens have it, such as `https://id.example.org/realms/team`. A bearer token (JWT) that it has signed for `HATCH_OIDC_AUDIENCE` is accepted like an API key; its bearer is a user, made on first use. Default: none; only API keys are accepted.",
		set: oidcIssuer,
	},
	{
		Name: "oidc_audience", Env: "HATCH_OIDC_AUDIENCE",
		Doc: "Client id that tokens must be for; set it together with the issuer.",
		set: word(func(c *Config) *string { return &c.OIDC.Audience }),
	},
	{
		Name: "oidc_user_claim", Env: "HATCH_OIDC_USER_CLAIM", Default: "email",
		Doc: "Claim of a token that a new user is named after. `email` counts only if the token says that it is verified. A user is recognized by issuer and subject (`sub`) alone, so that no name can be taken over.",
		set: word(func(c *Config) *string { return &c.OIDC.UserClaim }),
	},
	{
		Name: "oidc_role_claim", Env: "HATCH_OIDC_ROLE_CLAIM",
		Doc: "Claim of a token, a text or a list, that says who is an admin, such as `groups` or `realm_access.roles`. It is looked at with each token. Default: none; all are members.",
		set: word(func(c *Config) *string { return &c.OIDC.RoleClaim }),
	},
	{
		Name: "oidc_admin_values", Env: "HATCH_OIDC_ADMIN_VALUES",
		Doc: "Values of that claim that make an admin, separated by commas; set them together.",
		set: oidcAdminValues,
	},
}

// oidcIssuer accepts http for this host only: keys that come on the way can be replaced.
func oidcIssuer(c *Config, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("must be a URL without a query, such as https://id.example.org")
	}
	addr, notAddr := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || notAddr != nil || !addr.IsLoopback()) {
		return errors.New("must begin with https://")
	}
	c.OIDC.Issuer = raw
	return nil
}

// maxWord bounds a claim's name or value, in bytes.
const maxWord = 255

func word(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, raw string) error {
		if len(raw) > maxWord || strings.ContainsAny(raw, " \t\n,") {
			return errors.New("must be up to 255 bytes without spaces or commas")
		}
		*field(c) = raw
		return nil
	}
}

func oidcAdminValues(c *Config, raw string) error {
	for value := range strings.SplitSeq(raw, ",") {
		if value = strings.TrimSpace(value); value == "" || len(value) > maxWord {
			return errors.New("must be values of up to 255 bytes, separated by commas, such as admins,ops")
		}
		c.OIDC.AdminValues = append(c.OIDC.AdminValues, value)
	}
	return nil
}

// checkOIDC checks that settings of the issuer that need each other are set.
func (l *loader) checkOIDC(c OIDC) {
	if (c.Issuer == "") != (c.Audience == "") {
		l.fail("HATCH_OIDC_ISSUER, HATCH_OIDC_AUDIENCE", "", "must be set together")
	}
	if (c.RoleClaim == "") != (len(c.AdminValues) == 0) {
		l.fail("HATCH_OIDC_ROLE_CLAIM, HATCH_OIDC_ADMIN_VALUES", "", "must be set together")
	}
}
