package proxy

import (
	"encoding/base64"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// credential names where a request carries credentials.
type credential string

// The credentials, as the header or query field that has them.
const (
	byToken  credential = route.TokenParam
	byCookie credential = "Cookie"
	byKey    credential = "X-Api-Key"
	byAccess credential = "X-Access-Token"
	byHeader credential = "Authorization"
)

// maxCookies bounds the cookies that are looked at. A neighbour's page can add others to
// that of the door, for the domain above both.
const maxCookies = 8

// presented is one of a request's credentials.
type presented struct {
	in credential
	route.Credentials
}

// presentedBy returns the request's credentials. Each is checked alone, so that the one
// that was accepted is known: the others may be the guest's own.
func presentedBy(r *http.Request) []presented {
	var all []presented
	add := func(in credential, c route.Credentials) {
		if c != (route.Credentials{}) {
			all = append(all, presented{in, c})
		}
	}
	if strings.Contains(r.URL.RawQuery, route.TokenParam) {
		add(byToken, route.Credentials{Token: r.URL.Query().Get(route.TokenParam)})
	}
	cookies := r.CookiesNamed(route.CookieName)
	for _, c := range cookies[:min(len(cookies), maxCookies)] {
		add(byCookie, route.Credentials{Cookie: c.Value})
	}
	add(byKey, route.Credentials{Key: r.Header.Get(string(byKey))})
	add(byAccess, route.Credentials{Key: r.Header.Get(string(byAccess))})
	if scheme, secret, _ := strings.Cut(r.Header.Get(string(byHeader)), " "); strings.EqualFold(scheme, "Bearer") {
		add(byHeader, route.Credentials{Key: strings.TrimSpace(secret)})
	}
	if user, password, ok := r.BasicAuth(); ok {
		add(byHeader, route.Credentials{Username: user, Password: password})
	}
	return all
}

// authorize checks the client's address and the request's credentials. An address that
// is not allowed, and a stranger to a name that no route has, get what an unknown name
// gets: they learn nothing about which VMs there are.
func (p *Proxy) authorize(r *http.Request, v *visit) error {
	t := v.target
	client := admission.ClientAt(v.client)
	if t.Allowed != nil && !slices.ContainsFunc(t.Allowed, func(n netip.Prefix) bool { return n.Contains(v.client) }) {
		p.cfg.Lines.Refused("route refused: the client's address is not allowed", client)
		return unknown
	}
	if t.Auth.Mode == route.Public {
		return nil
	}
	err := p.check(r, v, client)
	if status := statusOf(err); t.RouteID == "" && (status == http.StatusUnauthorized || status == http.StatusTooManyRequests) {
		return unknown
	}
	return err
}

// guesses reports whether a credential could be found by trying, and opens routes with a
// mode. A signature cannot be guessed, and an old one is no attack.
func (c presented) guesses(mode route.Mode) bool {
	if mode == route.Basic {
		return c.Password != ""
	}
	return c.Key != ""
}

// check accepts one of the request's credentials. A client of the network that has used
// up its tries of wrong ones gets no further check. A request is one try, and none if one
// of its credentials is accepted: the others may be the guest's own.
func (p *Proxy) check(r *http.Request, v *visit, client admission.Client) error {
	var wrong error = unauthorized
	guessed := false
	for _, c := range presentedBy(r) {
		guess := c.guesses(v.target.Auth.Mode)
		if wait := p.tries.Wait(client); guess && wait > 0 && client != admission.Local {
			return tooManyTries(wait)
		}
		guessed = guessed || guess
		c.From = v.client
		grant, err := p.cfg.Names.Authorize(r.Context(), v.target, c.Credentials)
		if err == nil {
			v.grant, v.used = grant, c
			return nil
		}
		if wrong = err; statusOf(err) != http.StatusUnauthorized && statusOf(err) != http.StatusNotFound {
			return err
		}
	}
	if guessed {
		p.tries.Failed(client)
	}
	return wrong
}

func tooManyTries(wait time.Duration) error {
	r := *overTries
	r.retryAfter = wait
	return &r
}

// isNavigation reports whether a browser that follows a link sent the request: it can
// be sent on to the same page without the token.
func isNavigation(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == ""
}

// setCookie lets the browser of a visitor with a signed link follow the route without it.
func setCookie(h http.Header, v *visit) {
	c := http.Cookie{
		Name: route.CookieName, Value: v.grant.Cookie, Path: "/", Expires: v.grant.Until,
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: v.proto == "https",
	}
	h.Add("Set-Cookie", c.String())
}

// withoutToken returns a URL's path and query without the token of a signed link, the
// rest byte for byte.
func withoutToken(u *url.URL) string {
	query := queryWithoutToken(u.RawQuery)
	if query != "" {
		query = "?" + query
	}
	return u.EscapedPath() + query
}

func queryWithoutToken(query string) string {
	if !strings.Contains(query, route.TokenParam) && !strings.Contains(query, "%") {
		return query
	}
	fields := slices.DeleteFunc(strings.Split(query, "&"), func(field string) bool {
		name, _, _ := strings.Cut(field, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		return name == route.TokenParam
	})
	return strings.Join(fields, "&")
}

// withoutSecrets removes the headers with the credentials that were accepted, and those
// with any key of this platform.
func withoutSecrets(h http.Header, used presented) {
	if used.in == byHeader {
		h.Del(string(byHeader))
	}
	maps.DeleteFunc(h, func(_ string, values []string) bool {
		return slices.ContainsFunc(values, func(value string) bool {
			return slices.ContainsFunc(secretsIn(value), func(secret string) bool {
				return access.IsSecret(secret) || used.Key != "" && secret == used.Key
			})
		})
	})
}

// secretsIn returns what may be a key in a header's value: all of it, what follows the
// scheme, and the user name and the password.
func secretsIn(value string) []string {
	value = strings.TrimSpace(value)
	scheme, rest, _ := strings.Cut(value, " ")
	found := []string{value, strings.TrimSpace(rest)}
	if !strings.EqualFold(scheme, "Basic") {
		return found
	}
	text, _ := base64.StdEncoding.DecodeString(found[1]) // what cannot be read has no key
	user, password, _ := strings.Cut(string(text), ":")
	return append(found, user, password)
}

// withoutCookie removes the door's cookie from the headers that a guest gets, and
// leaves the others as they are.
func withoutCookie(h http.Header) {
	lines := h["Cookie"]
	if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, route.CookieName) }) {
		return
	}
	var rest []string
	for _, line := range lines {
		kept := slices.DeleteFunc(strings.Split(line, ";"), func(c string) bool {
			name, _, _ := strings.Cut(c, "=")
			return strings.TrimSpace(name) == route.CookieName
		})
		if len(kept) > 0 {
			rest = append(rest, strings.TrimSpace(strings.Join(kept, ";")))
		}
	}
	if len(rest) == 0 {
		h.Del("Cookie")
		return
	}
	h["Cookie"] = rest
}

// visitOf tells where the request comes from. What a trusted proxy says of the client is
// believed, as far as trusted proxies have passed it on.
func (p *Proxy) visitOf(r *http.Request) *visit {
	v := &visit{proto: "http"}
	if r.TLS != nil {
		v.proto = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		v.client = peer.Addr().Unmap().WithZone("")
	}
	if !p.trusts(v.client) {
		return v
	}
	if proto := r.Header.Get("X-Forwarded-Proto"); proto == "http" || proto == "https" {
		v.proto = proto
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		v.client = addr.Unmap().WithZone("")
		if !p.trusts(v.client) {
			break
		}
	}
	return v
}

// peerOf returns the address that the request's connection comes from.
func peerOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

func (p *Proxy) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(p.cfg.Trusted, func(n netip.Prefix) bool { return n.Contains(addr) })
}
