package httpapi

import (
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

func conditions(v vm.VM) []api.Condition {
	return []api.Condition{
		condition(api.ConditionNetworkReady, v.Conditions.Network, v.UpdatedAt),
		condition(api.ConditionAgentReady, v.Conditions.Agent, v.UpdatedAt),
		condition(api.ConditionVMMHealthy, v.Conditions.VMM, v.UpdatedAt),
		condition(api.ConditionCloudInit, v.Conditions.CloudInit, v.UpdatedAt),
	}
}

// condition returns one condition. An unknown one counts as unknown since the VM's last
// change.
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

// utc returns a time as the API shows it: UTC, in milliseconds.
func utc(t time.Time) api.Time { return api.Time{Time: t.UTC().Truncate(time.Millisecond)} }

func utcOrNil(t *time.Time) *api.Time {
	if t == nil {
		return nil
	}
	u := utc(*t)
	return &u
}
