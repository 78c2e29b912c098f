package httpapi

import (
	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vmm"
)

// rateLimits decodes what may be absent at every level.
func rateLimits(in *api.RateLimits) *vmm.RateLimits {
	if in == nil {
		return nil
	}
	out := &vmm.RateLimits{NetworkIn: networkLimit(in.NetworkIn), NetworkOut: networkLimit(in.NetworkOut)}
	if in.Disk != nil {
		out.Disk = vmm.DiskLimit{BytesPerSecond: in.Disk.BytesPerSecond, OpsPerSecond: in.Disk.OpsPerSecond}
	}
	return out
}

func networkLimit(in *api.NetworkRateLimit) vmm.NetworkLimit {
	if in == nil {
		return vmm.NetworkLimit{}
	}
	return vmm.NetworkLimit{BytesPerSecond: in.BytesPerSecond}
}

// shownRateLimits returns nil where nothing is bounded.
func shownRateLimits(l vmm.RateLimits) *api.RateLimits {
	if l == (vmm.RateLimits{}) {
		return nil
	}
	out := &api.RateLimits{NetworkIn: shownNetworkLimit(l.NetworkIn), NetworkOut: shownNetworkLimit(l.NetworkOut)}
	if l.Disk != (vmm.DiskLimit{}) {
		out.Disk = &api.DiskRateLimit{BytesPerSecond: l.Disk.BytesPerSecond, OpsPerSecond: l.Disk.OpsPerSecond}
	}
	return out
}

func shownNetworkLimit(l vmm.NetworkLimit) *api.NetworkRateLimit {
	if l == (vmm.NetworkLimit{}) {
		return nil
	}
	return &api.NetworkRateLimit{BytesPerSecond: l.BytesPerSecond}
}
