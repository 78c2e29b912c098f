package httpapi

import (
	"cmp"
	"encoding/json"
	"reflect"
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

// idlePolicy decodes an idle policy, and adds the thresholds that it does not have. The
// service validates the values.
func (d *door) idlePolicy(in *api.Idle) *machine.IdlePolicy {
	if in == nil {
		return nil
	}
	out := &machine.IdlePolicy{
		Timeout: seconds(in.TimeoutSeconds), Action: machine.Action(in.Action),
		CPUPercent: d.idleDefaults.CPUPercent, NetworkBytes: d.idleDefaults.NetworkBytes,
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
func expiry(ttlSeconds *int64, at *api.Time, action string) (*machine.Expiry, error) {
	switch {
	case at != nil && ttlSeconds != nil:
		return nil, errs.InvalidField("expires_at", "cannot be given together with ttl_seconds")
	case ttlSeconds == nil && at == nil && action == "":
		return nil, nil
	case ttlSeconds == nil && at == nil:
		return nil, noExpiryTime()
	}
	return &machine.Expiry{
		TTL: seconds(ttlSeconds), At: expiryTime(at), Action: machine.Action(cmp.Or(action, string(machine.ActionStop))),
	}, nil
}

// noExpiryTime is the error of an action that would never happen.
func noExpiryTime() error {
	return errs.InvalidField("expire_action", "has no time to happen at; give ttl_seconds or expires_at, too")
}

// seconds decodes a duration, of which nil means none.
func seconds(n *int64) time.Duration {
	if n == nil {
		return 0
	}
	return time.Duration(*n) * time.Second
}

// expiryTime decodes the time of an expiry, of which nil means never.
func expiryTime(at *api.Time) time.Time {
	if at == nil {
		return time.Time{}
	}
	return at.UTC().Truncate(time.Microsecond)
}

// shownTTL returns nil if there is none.
func shownTTL(e machine.Expiry) *int64 {
	if e.TTL == 0 {
		return nil
	}
	return new(int64(e.TTL / time.Second))
}

// idleFields are the fields of a VM that idlePatch changes, and those that it ignores: a
// client may send back what it has read, though it is not so any more.
var idleFields = []string{"idle", "ttl_seconds", "expires_at", "expire_action", "last_activity", "in_use", "sleeps_at"}

// idlePatch changes the idle policy and the expiry of a VM as a merge patch says, of which
// after is the result and shown what the client has read. What it sends back unchanged
// changes nothing.
func (d *door) idlePatch(v *vm.VM, patch []byte, shown, after api.VM, now time.Time) error {
	if !reflect.DeepEqual(after.Idle, shown.Idle) {
		v.Idle = machine.IdlePolicy{}
		if policy := d.idlePolicy(after.Idle); policy != nil {
			v.Idle = *policy
		}
	}
	var given map[string]json.RawMessage
	_ = json.Unmarshal(patch, &given) // patched refuses what cannot be read
	_, ttlGiven := given["ttl_seconds"]
	_, atGiven := given["expires_at"]
	ttl, at := seconds(after.TTLSeconds), expiryTime(after.ExpiresAt)
	atChanges := !at.Truncate(time.Millisecond).Equal(expiryTime(shown.ExpiresAt).Truncate(time.Millisecond)) // as it is shown
	ttlChanges := ttlGiven && (ttl != seconds(shown.TTLSeconds) || !atGiven)                                  // given alone, it begins again
	actionChanges := after.ExpireAction != shown.ExpireAction
	next := v.Expiry
	switch {
	case ttlChanges && atChanges && ttl > 0 && !at.IsZero():
		return errs.InvalidField("expires_at", "cannot be given together with ttl_seconds")
	case atChanges && !at.IsZero() && !at.After(now):
		return errs.InvalidField("expires_at", "%s has passed already", at.Format(time.RFC3339))
	case atChanges && (!at.IsZero() || !ttlChanges):
		next.TTL, next.At = 0, at
	case ttlChanges:
		next.TTL = ttl
		next = next.Begun(now)
	case !actionChanges:
		return nil
	}
	next.Action = machine.Action(cmp.Or(after.ExpireAction, string(machine.ActionStop)))
	if next.At.IsZero() {
		next = machine.Expiry{}
		if actionChanges && after.ExpireAction != "" {
			return noExpiryTime()
		}
	}
	v.Expiry = next
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
