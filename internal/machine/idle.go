package machine

import (
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Action is what becomes of a VM that is idle, or whose time has passed.
type Action string

// The actions. None is for idle VMs only, Delete for expired ones only.
const (
	ActionSleep  Action = "sleep"
	ActionStop   Action = "stop"
	ActionNone   Action = "none"
	ActionDelete Action = "delete"
)

// Limits on idle policies and expiries.
const (
	MinIdle        = time.Second
	MaxIdle        = 365 * 24 * time.Hour
	MaxIdlePercent = 100 * 4096
	MaxIdleBytes   = 1 << 50
)

// IdlePolicy says what happens to a VM that is not used. The zero value: nothing.
type IdlePolicy struct {
	Timeout      time.Duration `json:"timeout"` // without activity; 0 means no limit
	Action       Action        `json:"action,omitempty"`
	CPUPercent   int           `json:"cpu_percent"`   // of one CPU of the host, on average, from which the guest counts as active; 0: at no use
	NetworkBytes int64         `json:"network_bytes"` // received and sent within the timeout, from which it does; 0: at no number
}

// Active reports whether the policy takes VMs down at all.
func (p IdlePolicy) Active() bool {
	return p.Timeout > 0 && (p.Action == ActionSleep || p.Action == ActionStop)
}

func (p IdlePolicy) check() error {
	switch {
	case p == IdlePolicy{}:
		return nil
	case p.Timeout != 0 && (p.Timeout < MinIdle || p.Timeout > MaxIdle):
		return errs.InvalidField("idle", "timeout_seconds: %g is out of range; 0 for no limit, or 1 to %g can be given", p.Timeout.Seconds(), MaxIdle.Seconds())
	case p.Action != "" && p.Action != ActionSleep && p.Action != ActionStop && p.Action != ActionNone: // "" in a template: the server's
		return errs.InvalidField("idle", "action: %q is not an action; sleep, stop or none can be given", errs.Brief(string(p.Action)))
	case p.CPUPercent < 0 || p.CPUPercent > MaxIdlePercent:
		return errs.InvalidField("idle", "cpu_percent: %d is out of range; 0 (never active by CPU) to %d can be given", p.CPUPercent, MaxIdlePercent)
	case p.NetworkBytes < 0 || p.NetworkBytes > MaxIdleBytes:
		return errs.InvalidField("idle", "network_bytes: %d is out of range; 0 (never active by its network) to %d can be given", p.NetworkBytes, int64(MaxIdleBytes))
	}
	return nil
}

// Expiry says what happens to a VM at a time, whether it is used or not. The zero
// value: nothing.
type Expiry struct {
	TTL    time.Duration `json:"ttl,omitempty"` // from the VM's creation; a clone gets it anew
	At     time.Time     `json:"at,omitzero"`   // zero: never; of a template always
	Action Action        `json:"action,omitempty"`
}

// Begun returns the expiry of a VM that is created now: a TTL begins, and a time that
// was another VM's is dropped.
func (e Expiry) Begun(now time.Time) Expiry {
	e.At = time.Time{}
	if e.TTL > 0 {
		e.At = now.Add(e.TTL)
	}
	return e
}

func (e Expiry) check() error {
	switch {
	case e == Expiry{}:
		return nil
	case e.TTL != 0 && (e.TTL < MinIdle || e.TTL > MaxIdle):
		return errs.InvalidField("ttl_seconds", "%g is out of range; 0 for no limit, or 1 to %g can be given", e.TTL.Seconds(), MaxIdle.Seconds())
	case e.Action != ActionDelete && e.Action != ActionStop && e.Action != ActionSleep:
		return errs.InvalidField("expire_action", "%q is not an action; delete, stop or sleep can be given", errs.Brief(string(e.Action)))
	}
	return nil
}
