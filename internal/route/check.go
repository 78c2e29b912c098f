package route

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

// Limits of routes.
const (
	MaxPerVM           = 32
	MaxAllowed         = 32 // networks of one route
	MaxUsername        = 64 // bytes
	MinPassword        = 8  // bytes
	MaxPassword        = 72 // bytes; bcrypt reads no more
	MaxResponseTimeout = time.Hour
)

// Draft is a route as a caller asks for it.
type Draft struct {
	Spec
	Password string // for Basic; "" keeps the hash that Spec has
}

// Decide checks a draft, fills in its defaults, and hashes its password.
// Errors: errs.Invalid names the field.
func (d Draft) Decide() (Spec, error) {
	s := d.Spec
	if s.Auth.Mode == "" {
		s.Auth.Mode = Public
	}
	if s.Upstream == "" {
		s.Upstream = HTTP1
	}
	for i, p := range s.Allowed {
		s.Allowed[i] = p.Masked()
	}
	if err := s.check(); err != nil {
		return Spec{}, err
	}
	if err := s.Auth.decide(d.Password); err != nil {
		return Spec{}, err
	}
	return s, nil
}

// InList returns an error of a route as one of the request that has a list of them.
func InList(i int, err error) error {
	e, ok := errs.As(err)
	if !ok || e.Field == "" {
		return err
	}
	at := fmt.Sprintf("routes[%d].", i)
	c := *e
	c.Field, c.Message = at+e.Field, at+e.Message
	return &c
}

func (s Spec) check() error {
	switch {
	case s.Subdomain != "" && s.Domain != "":
		return errs.InvalidField("domain", "cannot be given with subdomain; make a route for each")
	case s.Port < 1 || s.Port > 65535:
		return errs.InvalidField("target_port", "%d is not a port; want 1 to 65535", s.Port)
	case s.Upstream != HTTP1 && s.Upstream != H2C:
		return errs.InvalidField("upstream", "%q is not a protocol; want http1 or h2c", errs.Brief(string(s.Upstream)))
	case s.ResponseTimeout < 0 || s.ResponseTimeout > MaxResponseTimeout:
		return errs.InvalidField("timeouts.response_header_seconds", "%g is out of range; want 0, for no limit, to %g",
			s.ResponseTimeout.Seconds(), MaxResponseTimeout.Seconds()).WithCode("invalid_timeouts")
	case len(s.Allowed) > MaxAllowed:
		return errs.InvalidField("allowed_cidrs", "are %d; the limit is %d", len(s.Allowed), MaxAllowed)
	case s.Domain != "":
		return checkDomain(s.Domain)
	case s.Subdomain != "":
		return checkSubdomain(s.Subdomain)
	}
	return nil
}

var (
	labelForm    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	implicitForm = regexp.MustCompile(`^[0-9]+-`)
)

// reserved are subdomains that operators use themselves.
var reserved = []string{
	"admin", "api", "app", "assets", "auth", "billing", "cdn", "console", "dashboard", "db", "docs", "ftp", "grafana", "hatch", "help", "internal",
	"login", "mail", "media", "minio", "ns1", "ns2", "oauth", "panel", "postgres", "prometheus", "redis", "smtp", "ssh", "static", "status", "support",
	"traefik", "www",
}

func checkSubdomain(name string) error {
	switch {
	case !labelForm.MatchString(name):
		return errs.InvalidField("subdomain", "%q is not a label of a host name; want up to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends", errs.Brief(name))
	case slices.Contains(reserved, name):
		return errs.InvalidField("subdomain", "%q is reserved; give another", name)
	case implicitForm.MatchString(name):
		return errs.InvalidField("subdomain", "%q has the form of PORT-VM, which leads to a port without a route; give one that does not begin with digits and a hyphen", name)
	}
	return nil
}

// maxDomain is the limit of a host name, in bytes.
const maxDomain = 253

func checkDomain(name string) error {
	labels := strings.Split(name, ".")
	wrong := func(label string) bool { return !labelForm.MatchString(label) }
	_, notAddress := netip.ParseAddr(name)
	if len(name) > maxDomain || len(labels) < 2 || slices.ContainsFunc(labels, wrong) || notAddress == nil {
		return errs.InvalidField("domain", "%q is not a host name; want one such as www.example.org, in lower case, and in its xn-- form if it has other letters", errs.Brief(name))
	}
	return nil
}

// ParseAllowed parses networks that a route accepts requests from.
func ParseAllowed(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		p, err := network.ParsePrefix(text)
		if err != nil {
			return nil, errs.InvalidField("allowed_cidrs", "%q is not a network; want one such as 192.0.2.0/24 or 2001:db8::/32", errs.Brief(text))
		}
		all = append(all, p)
	}
	return all, nil
}

// hashCost is bcrypt's; a hash takes some 50 ms of a CPU. Tests lower it.
var hashCost = bcrypt.DefaultCost

// decide checks who may follow a route, and hashes the password if one is given.
func (a *Auth) decide(password string) error {
	switch {
	case a.Mode != Public && a.Mode != Key && a.Mode != Basic:
		return errs.InvalidField("auth.mode", "%q is not a mode; want public, key or basic", errs.Brief(string(a.Mode))).WithCode("invalid_auth")
	case a.Mode != Basic && (a.Username != "" || password != ""):
		return errs.InvalidField("auth", "a username and a password are for mode basic only")
	case a.Mode != Basic:
		a.Hash = nil
		return nil
	case !printable(a.Username, MaxUsername) || strings.Contains(a.Username, ":"):
		return errs.InvalidField("auth.username", "want 1 to %d bytes of printable text without a colon", MaxUsername).WithCode("invalid_auth")
	case password == "" && a.Hash != nil:
		return nil
	case len(password) < MinPassword || len(password) > MaxPassword:
		return errs.InvalidField("auth.password", "has %d bytes; want %d to %d", len(password), MinPassword, MaxPassword).WithCode("invalid_auth")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), hashCost)
	if err != nil {
		return fmt.Errorf("cannot hash a password: %w", err)
	}
	a.Hash = hash
	return nil
}

// printable reports whether a text has 1 to limit bytes that can be shown.
func printable(text string, limit int) bool {
	return text != "" && len(text) <= limit && utf8.ValidString(text) &&
		!strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}
