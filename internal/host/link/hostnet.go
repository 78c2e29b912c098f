package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/bridge"
	"github.com/hatchvm/hatch/internal/network"
)

// minMTU is the smallest MTU of an IPv6-capable path; an uplink with a smaller one
// is misconfigured, and guests ignore it.
const minMTU = 1280

// uplinkMTU returns the MTU for guests: 1500, or that of the interface with the
// default route if it is smaller, so that no packet of a guest is too big for it.
func uplinkMTU() int {
	mtu := bridge.DefaultMTU
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue // not a default route
			}
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return max(mtu, minMTU)
}

// localNetworks returns the IPv4 networks that the host is on, in order, without
// the guests' network. Guests may not reach them: they are not the internet.
func localNetworks(own network.Network) ([]netip.Prefix, error) {
	addrs, err := bridge.List(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's addresses: %w", err)
	}
	var local []netip.Prefix
	for _, a := range addrs {
		// On a point-to-point link the neighbour is the peer.
		of := a.IPNet
		if a.Peer != nil {
			of = a.Peer
		}
		addr, ok := netip.AddrFromSlice(of.IP.To4())
		if !ok {
			continue
		}
		bits, _ := of.Mask.Size()
		if p := netip.PrefixFrom(addr, bits).Masked(); p.IsValid() && bits > 0 && p != own.Prefix {
			local = append(local, p)
		}
	}
	slices.SortFunc(local, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(local), nil
}
