package webhook

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// special lists the networks that are not part of the public internet, in addition
// to those that netip.Addr has methods for: local and private networks, and those
// that embed IPv4 addresses.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),          // IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), // Teredo and others
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("3fff::/20"),
	netip.MustParsePrefix("5f00::/16"),
	netip.MustParsePrefix("fec0::/10"),
}

// Public reports whether an address is on the public internet: not this host, not
// a private network, and not a cloud's metadata service.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.Zone() == "" && a.IsGlobalUnicast() && !a.IsPrivate() &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

const maxURL = 2048 // bytes

// checkURL returns an error if the URL cannot be posted to. Host names are resolved,
// and their addresses checked, when the sender dials.
func checkURL(text string, allowPrivate bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > maxURL || u.Host == "" || u.Opaque != "" || !validPort(u):
		return errs.InvalidField("url", "is not a valid URL: want one such as https://example.com/hook of up to %d bytes", maxURL)
	case u.Scheme != "https" && (u.Scheme != "http" || !allowPrivate):
		return errs.InvalidField("url", "the URL must begin with https://").
			WithHint("http:// is allowed if HATCH_WEBHOOK_ALLOW_PRIVATE is true")
	case u.User != nil || u.Fragment != "":
		return errs.InvalidField("url", "the URL must have no user, password or fragment")
	case !allowPrivate && private(u.Hostname()):
		return errs.InvalidField("url", "the URL leads to this host or to a private network").
			WithHint("such addresses are allowed if HATCH_WEBHOOK_ALLOW_PRIVATE is true")
	}
	return nil
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return u.Hostname() != "" && !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port > 0 && u.Hostname() != ""
}

// private reports whether a host is not on the public internet, as far as this can
// be seen without a name lookup.
func private(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return !Public(a)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
