package httpapi

import (
	"cmp"
	"encoding/json"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idle"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// Idle tells how idle VMs are. [idle.Service] implements it.
type Idle interface {
	Status(v vm.VM) idle.Status
}

// idlePolicy decodes an idle policy. The service validates the values.
func idlePolicy(in *api.Idle) *machine.IdlePolicy {
	if in == nil {
		return nil
	}
	out := &machine.IdlePolicy{
		Action:     machine.Action(in.Action),
		CPUPercent: machine.DefaultIdleCPUPercent, NetworkBytes: machine.DefaultIdleNetworkBytes,
	}
	if in.TimeoutSeconds != nil {
		out.Timeout = time.Duration(*in.TimeoutSeconds) * time.Second
	}
	if in.CPUPercent != nil {
		out.CPUPercent = *in.CPUPercent
	}
	if in.NetworkBytes != nil {
		out.NetworkBytes = *in.NetworkBytes
	}
	return out
}

func shownIdle(p machine.IdlePolicy) *api.Idle {
	return &api.Idle{TimeoutSeconds: new(int64(p.Timeout / time.Second)), Action: string(p.Action), CPUPercent: &p.CPUPercent, NetworkBytes: &p.NetworkBytes}
}

// expiry decodes an expiry, of which nil means not given.
func expiry(ttlSeconds *int64, at *api.Time, action string) *machine.Expiry {
	if ttlSeconds == nil && at == nil && action == "" {
		return nil
	}
	out := &machine.Expiry{Action: machine.Action(cmp.Or(action, string(machine.ActionStop)))}
	if ttlSeconds != nil {
		out.TTL = time.Duration(*ttlSeconds) * time.Second
	}
	if at != nil {
		out.At = at.UTC().Truncate(time.Microsecond)
	}
	return out
}

// idleFields are the fields of a VM that idlePatch changes, and those that it ignores: a
// client may send back what it has read, though it is not so any more.
var idleFields = []string{"idle", "ttl_seconds", "expires_at", "expire_action", "last_activity", "in_use", "sleeps_at"}

// idlePatch changes the idle policy and the expiry of a VM as a merge patch says, of which
// after is the result. A TTL that is given begins now, also if it is the old one.
func idlePatch(v *vm.VM, patch []byte, after api.VM, now time.Time) error {
	var given map[string]json.RawMessage
	_ = json.Unmarshal(patch, &given) // patched refuses what cannot be read
	if policy := idlePolicy(after.Idle); policy != nil {
		v.Idle = *policy
		v.Idle.Action = cmp.Or(v.Idle.Action, machine.ActionSleep)
	} else {
		v.Idle = machine.IdlePolicy{}
	}
	_, ttlGiven := given["ttl_seconds"]
	_, atGiven := given["expires_at"]
	_, actionGiven := given["expire_action"]
	switch {
	case ttlGiven && atGiven:
		return errs.InvalidField("expires_at", "cannot be given together with ttl_seconds")
	case !ttlGiven && !atGiven && !actionGiven:
		return nil
	}
	next := expiry(after.TTLSeconds, after.ExpiresAt, after.ExpireAction)
	if next == nil {
		next = &machine.Expiry{}
	}
	switch {
	case ttlGiven:
		*next = next.Begun(now)
	case atGiven:
		next.TTL = 0
		if !next.At.IsZero() && !next.At.After(now) {
			return errs.InvalidField("expires_at", "%s has passed already", next.At.Format(time.RFC3339))
		}
	}
	if next.TTL == 0 && next.At.IsZero() {
		*next = machine.Expiry{}
	}
	v.Expiry = *next
	return nil
}

// use returns how a VM is used.
func (h *vmHandlers) use(v vm.VM) (out api.Use) {
	if h.idle == nil {
		return out
	}
	st := h.idle.Status(v)
	if st.Last != (vm.Activity{}) {
		out.LastActivity = &api.Activity{At: utc(st.Last.At), Cause: st.Last.Cause, Peer: st.Last.Peer}
	}
	out.InUse = st.InUse
	if !st.SleepsAt.IsZero() {
		out.SleepsAt = utcOrNil(&st.SleepsAt)
	}
	return out
}
