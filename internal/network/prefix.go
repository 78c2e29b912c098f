package network

import (
	"errors"
	"net/netip"
)

// ParsePrefix parses a network that clients may come from, or an address as a network of
// only that address. IPv4 in the form of IPv6 becomes IPv4, as clients' addresses are.
func ParsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if addr, notAddr := netip.ParseAddr(text); notAddr == nil {
		p, err = netip.PrefixFrom(addr.WithZone(""), addr.BitLen()), nil
		if addr.Zone() != "" {
			err = errors.New("a network has no zone")
		}
	}
	const mapped = 96 // bits before the IPv4 address
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case p.Addr().Is4In6() && p.Bits() < mapped:
		return netip.Prefix{}, errors.New("a network has more than IPv4 in the form of IPv6")
	case p.Addr().Is4In6():
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), nil
}
