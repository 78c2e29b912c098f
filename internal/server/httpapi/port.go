package httpapi

import (
	"context"
	"net/netip"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// ports decodes ports to publish; nil means not given. The service validates the values.
func ports(in []api.Port) ([]machine.Port, error) {
	if in == nil {
		return nil, nil
	}
	out := make([]machine.Port, len(in))
	for i, p := range in {
		out[i] = machine.Port{Guest: p.Guest, Host: p.Host, Name: p.Name}
		if p.AllowedCIDRs != nil {
			out[i].Allowed = make([]netip.Prefix, 0, len(p.AllowedCIDRs))
		}
		for _, text := range p.AllowedCIDRs {
			prefix, err := network.ParsePrefix(text)
			if err != nil {
				return nil, errs.InvalidField("ports", "entry %d: allowed_cidrs has %q; want a network or an address, such as 192.0.2.0/24 or 2001:db8::7", i+1, errs.Brief(text))
			}
			out[i].Allowed = append(out[i].Allowed, prefix)
		}
	}
	return out, nil
}

// mayPublish refuses host ports of the caller's choice without the scope admin: other
// callers get free ones of hatchd's range, and so no port of a service of the host.
func mayPublish(ctx context.Context, ports []machine.Port) error {
	for _, p := range ports {
		if p.Host != 0 && checkRight(ctx, access.Admin) != nil {
			return errs.New(errs.Forbidden, "forbidden", "cannot publish on host port %d with this API key: to choose a host port needs the scope %q", p.Host, access.Admin).
				WithField("ports").WithHint("leave host out to get a free one")
		}
	}
	return nil
}

// changedPorts decodes the ports that a VM is to have instead of its own. A host port that
// hatchd has chosen, and that the client sends back, stays one that hatchd may choose anew.
func changedPorts(ctx context.Context, v vm.VM, in []api.Port) ([]machine.Port, error) {
	out, err := ports(in)
	if err != nil {
		return nil, err
	}
	named := map[int]int{} // host ports in the spec, by the guest's
	for _, p := range v.Ports {
		named[p.Guest] = p.Host
	}
	var given []machine.Port
	for i, p := range out {
		was, published := named[p.Guest]
		switch {
		case published && was == 0 && p.Host == v.Lease.Ports[p.Guest]:
			out[i].Host = 0
		case p.Host != was:
			given = append(given, p)
		}
	}
	return out, mayPublish(ctx, given)
}

// shownPorts returns ports with the host ports that a lease has for them.
func shownPorts(ports []machine.Port, leased map[int]int) []api.Port {
	if ports == nil {
		return nil
	}
	out := make([]api.Port, len(ports))
	for i, p := range ports {
		out[i] = api.Port{Guest: p.Guest, Host: p.Host, Name: p.Name}
		if host := leased[p.Guest]; host != 0 {
			out[i].Host = host
		}
		for _, prefix := range p.Allowed {
			out[i].AllowedCIDRs = append(out[i].AllowedCIDRs, prefix.String())
		}
	}
	return out
}
