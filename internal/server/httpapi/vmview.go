package httpapi

import (
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

// wholeVM returns a VM as its owner sees it alone.
func wholeVM(v vm.VM) api.VM {
	out := listedVM(v)
	out.UserData, out.BootArgs = v.UserData, v.BootArgs
	if v.Machine != nil {
		out.SocketPath = v.Machine.Socket
	}
	return out
}

// listedVM returns a VM as lists show it: without secrets and host paths.
func listedVM(v vm.VM) api.VM {
	out := api.VM{
		ID: v.ID, Name: v.Name, ImageID: v.ImageID, TemplateID: v.TemplateID,
		State: string(v.State), StateReason: v.StateReason, Conditions: conditions(v),
		VCPUCount: v.VCPUs, MemMiB: v.MemMiB, DiskMiB: v.DiskMiB,
		GuestIP: addressText(v.Lease.Address), GuestMAC: strings.ToUpper(v.Lease.MAC.String()), TapName: v.Lease.Tap, SSHPort: v.Lease.SSHPort,
		EnableNetwork: v.EnableNetwork, Labels: v.Labels, SSHAuthorizedKeys: v.SSHKeys, VMM: v.Driver,
		SnapshotID: v.SnapshotID, RateLimits: shownRateLimits(v.RateLimits),
		CreatedAt: utc(v.CreatedAt), UpdatedAt: utc(v.UpdatedAt), StartedAt: utcOrNil(v.StartedAt),
	}
	if v.Sleep != nil {
		out.Sleep = &api.Sleep{TakenAt: utc(v.Sleep.At), Durable: v.Sleep.Durable, SizeBytes: v.Sleep.Bytes}
	}
	return out
}

func conditions(v vm.VM) []api.Condition {
	return []api.Condition{
		condition(api.ConditionNetworkReady, v.Conditions.Network, v.UpdatedAt),
		condition(api.ConditionAgentReady, v.Conditions.Agent, v.UpdatedAt),
		condition(api.ConditionCloudInit, v.Conditions.CloudInit, v.UpdatedAt),
	}
}

// condition returns one condition. One that nothing is known of has been
// unknown since the VM last changed.
func condition(kind string, c vm.Condition, lastChange time.Time) api.Condition {
	out := api.Condition{Type: kind, Status: string(c.Status), Reason: c.Reason, Message: c.Message, ChangedAt: utc(c.ChangedAt)}
	if c.Status == "" {
		out.Status = api.StatusUnknown
	}
	if c.ChangedAt.IsZero() {
		out.ChangedAt = utc(lastChange)
	}
	return out
}

// utc returns a time as all answers have it: UTC, to the millisecond.
func utc(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func utcOrNil(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := utc(*t)
	return &u
}
