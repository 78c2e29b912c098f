package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/api"
)

// idlePolicy returns the policy of the spec, which it creates if missing.
func idlePolicy(spec *api.MachineSpec) *api.Idle {
	if spec.Idle == nil {
		spec.Idle = &api.Idle{}
	}
	return spec.Idle
}

// wholeSeconds reads a time such as 10m or 2h.
func wholeSeconds(flag, text string) (*int64, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d%time.Second != 0 {
		return nil, usageError{fmt.Errorf("--%s takes a time in whole seconds, such as 90s, 10m or 2h, or 0, not %q", flag, text)}
	}
	return new(int64(d / time.Second)), nil
}

// idleness returns how idle a VM is, for tables: when it was last used, and when it sleeps.
func (p *printer) idleness(v api.VM) string {
	switch {
	case v.InUse:
		return "in use"
	case v.LastActivity == nil:
		return ""
	case v.SleepsAt == nil:
		return p.age(v.LastActivity.At)
	}
	then := "sleeps"
	if v.Idle != nil && v.Idle.Action == "stop" {
		then = "stops"
	}
	left := max(0, time.Until(v.SleepsAt.Time)).Round(time.Second)
	return fmt.Sprintf("%s, %s in %s", cmp.Or(p.age(v.LastActivity.At), "0s"), then, left)
}

// lastUse tells what a VM was last used for, and what comes next, as sentences.
func (p *printer) lastUse(v api.VM) string {
	var text string
	if a := v.LastActivity; a != nil {
		by := ""
		if a.Peer != "" {
			by = " by " + clean(a.Peer)
		}
		if v.InUse {
			text = fmt.Sprintf("It is in use: %s%s.\n", clean(a.Cause), by)
		} else {
			text = fmt.Sprintf("Its last activity was %s%s, %s ago.\n", clean(a.Cause), by, p.age(a.At))
		}
	}
	if v.SleepsAt != nil && v.Idle != nil && v.Idle.TimeoutSeconds != nil {
		what := "put to sleep"
		if v.Idle.Action == "stop" {
			what = "stopped"
		}
		text += fmt.Sprintf("If nothing happens, it is %s at %s (idle for %s).\n", what, p.clock(*v.SleepsAt), time.Duration(*v.Idle.TimeoutSeconds)*time.Second)
	}
	if v.ExpiresAt != nil {
		text += fmt.Sprintf("It expires at %s (action: %s).\n", p.clock(*v.ExpiresAt), v.ExpireAction)
	}
	return text
}
