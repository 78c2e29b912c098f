package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/hatchvm/hatch/internal/host/bridge"
	"github.com/hatchvm/hatch/internal/network"
)

// leastMTU is what every IPv6-capable path carries; a smaller MTU of an uplink
// is an accident that guests should not share.
const leastMTU = 1280

// uplinkMTU returns the MTU for guests: 1500, or that of the interface with
// the default route when it carries less. Then no packet of a guest is too
// big for its way out.
func uplinkMTU() int {
	mtu := bridge.DefaultMTU
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return max(mtu, leastMTU)
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// localNetworks returns the IPv4 networks that the host itself is on, but for
// the guests' own, in order. Guests that reached them would be in the host's
// neighbourhood, not on the internet.
func localNetworks(own network.Network) ([]netip.Prefix, error) {
	addrs, err := hostAddresses()
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's addresses: %w", err)
	}
	var local []netip.Prefix
	for _, a := range addrs {
		// For a point-to-point link, the peer is the neighbour.
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

// hostAddresses lists the host's IPv4 addresses; a list that changed while it
// was read is read again.
func hostAddresses() ([]netlink.Addr, error) {
	const tries = 10
	for range tries - 1 {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return addrs, err
		}
	}
	return netlink.AddrList(nil, netlink.FAMILY_V4)
}
