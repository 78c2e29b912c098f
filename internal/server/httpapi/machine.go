package httpapi

import (
	"context"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// overrides decodes the spec fields of a request, and expires_at, which templates do not
// have. The service validates the values.
func (d *door) overrides(ctx context.Context, in api.MachineSpec, expiresAt *api.Time) (machine.Overrides, error) {
	data, err := userData(in.UserData, in.UserDataEncoding)
	if err != nil {
		return machine.Overrides{}, err
	}
	published, err := ports(in.Ports)
	if err == nil {
		err = mayPublish(ctx, published)
	}
	if err != nil {
		return machine.Overrides{}, err
	}
	expires, err := expiry(in.TTLSeconds, expiresAt, in.ExpireAction)
	return machine.Overrides{
		ImageID: in.ImageID, Description: in.Description, Hostname: in.Hostname, VCPUs: in.VCPUCount, MemMiB: in.MemMiB, DiskMiB: in.DiskMiB,
		BootArgs: in.BootArgs, EnableNetwork: in.EnableNetwork, UserData: data,
		Labels: in.Labels, SSHKeys: in.SSHAuthorizedKeys, RateLimits: rateLimits(in.RateLimits), Ports: published,
		ImplicitRoutes: implicitRoutes(in.ImplicitRoutes), Idle: d.idlePolicy(in.Idle), Expiry: expires,
	}, err
}

// userData decodes user data, of which nil means not given.
func userData(text *string, encoding string) (*string, error) {
	if text == nil {
		if encoding != "" {
			return nil, errs.InvalidField("user_data_encoding", "is given without user_data")
		}
		return nil, nil
	}
	data, err := decodeText("user_data", *text, encoding)
	return &data, err
}

// shownOverrides is the reverse of overrides, for templates.
func shownOverrides(o machine.Overrides) api.MachineSpec {
	out := api.MachineSpec{
		ImageID: o.ImageID, Description: o.Description, Hostname: o.Hostname, VCPUCount: o.VCPUs, MemMiB: o.MemMiB, DiskMiB: o.DiskMiB,
		BootArgs: o.BootArgs, EnableNetwork: o.EnableNetwork,
		Labels: o.Labels, SSHAuthorizedKeys: o.SSHKeys, Ports: shownPorts(o.Ports, nil),
	}
	if o.UserData != nil {
		text, encoding := api.EncodeText(*o.UserData)
		out.UserData, out.UserDataEncoding = &text, encoding
	}
	if o.RateLimits != nil {
		out.RateLimits = shownRateLimits(*o.RateLimits)
	}
	if o.ImplicitRoutes != nil {
		out.ImplicitRoutes = shownImplicit(*o.ImplicitRoutes)
	}
	if o.Idle != nil {
		out.Idle = shownIdle(*o.Idle)
	}
	if o.Expiry != nil {
		out.TTLSeconds, out.ExpireAction = new(int64(o.Expiry.TTL/time.Second)), string(o.Expiry.Action)
	}
	return out
}

// wholeVM returns a VM as answers about one VM show it.
func wholeVM(v vm.VM) api.VM {
	out := listedVM(v)
	out.UserData, out.UserDataEncoding = api.EncodeText(v.UserData)
	out.BootArgs, out.SSHHostKeys = v.BootArgs, v.Conditions.SSH.HostKeys
	if v.Machine != nil {
		out.SocketPath = v.Machine.Socket
	}
	return out
}

// listedVM returns a VM as lists show it: without secrets and host paths.
func listedVM(v vm.VM) api.VM {
	out := api.VM{
		ID: v.ID, Name: v.Name, Description: v.Description, Hostname: v.Hostname(), State: string(v.State), StateReason: v.StateReason, Conditions: conditions(v),
		ImageID: v.ImageID, TemplateID: v.TemplateID, VCPUCount: v.VCPUs, MemMiB: v.MemMiB, DiskMiB: v.DiskMiB,
		EnableNetwork: v.EnableNetwork, Labels: v.Labels, SSHAuthorizedKeys: v.SSHKeys, VMM: v.Driver, RateLimits: shownRateLimits(v.RateLimits),
		GuestIP: addressText(v.Lease.Address), GuestMAC: strings.ToUpper(v.Lease.MAC.String()), TapName: v.Lease.Tap, SSHPort: v.Lease.SSHPort,
		SnapshotID: v.SnapshotID, Ports: shownPorts(v.Ports, v.Lease.Ports), ImplicitRoutes: shownImplicit(v.ImplicitRoutes),
		CreatedAt: utc(v.CreatedAt), UpdatedAt: utc(v.UpdatedAt), StartedAt: utcOrNil(v.StartedAt),
	}
	if v.Idle != (machine.IdlePolicy{}) {
		out.Idle = shownIdle(v.Idle)
	}
	if e := v.Expiry; !e.At.IsZero() { // a TTL that has passed is for clones: sent back, it would begin again
		out.TTLSeconds, out.ExpiresAt, out.ExpireAction = shownTTL(e), utcOrNil(&e.At), string(e.Action)
	}
	if v.Sleep != nil {
		out.Sleep = &api.Sleep{TakenAt: utc(v.Sleep.At), Durable: v.Sleep.Durable, SizeBytes: v.Sleep.Bytes}
	}
	return out
}

// shownOrigin leaves out fields that may hold secrets.
func shownOrigin(o snapshot.Origin) api.SnapshotVMConfig {
	return api.SnapshotVMConfig{
		Hostname: o.Hostname, ImageID: o.ImageID, TemplateID: o.TemplateID,
		VCPUCount: o.VCPUs, MemMiB: o.MemMiB, DiskMiB: o.DiskMiB, BootArgs: o.BootArgs,
		EnableNetwork: o.EnableNetwork, GuestIP: addressText(o.Address), GuestMAC: strings.ToUpper(o.MAC.String()),
		RateLimits: shownRateLimits(o.RateLimits),
	}
}

// rateLimits decodes rate limits, of which any level may be absent.
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

// shownRateLimits returns nil if there is no limit.
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
