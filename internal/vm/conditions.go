package vm

import (
	"slices"
	"strings"
	"time"
)

// Status is the value of a condition.
type Status string

// Condition values.
const (
	True    Status = "true"
	False   Status = "false"
	Unknown Status = "unknown"
)

// Condition is one fact about a guest. The zero Condition is unknown.
type Condition struct {
	Status    Status    `json:"status"`
	Reason    string    `json:"reason,omitempty"`  // one stable CamelCase word
	Message   string    `json:"message,omitempty"` // in words
	ChangedAt time.Time `json:"changed_at"`
}

// Conditions are all facts known of a guest and its machine.
type Conditions struct {
	BootID    string    `json:"boot_id,omitempty"` // of the guest's boot that the conditions are of; "" before a report
	Network   Condition `json:"network"`           // the guest has its address; reason Disabled without a network
	Agent     Condition `json:"agent"`             // hatch-agent answers, in a guest that is not going down
	VMM       Condition `json:"vmm"`               // the VMM answers, and nothing but a request has halted the guest; see ToChecked
	CloudInit Condition `json:"cloud_init"`        // cloud-init has ended; reasons Running, Done, Degraded (with warnings), Failed, Absent, Disabled
	SSH       SSHServer `json:"ssh,omitzero"`      // of the boot; zero before a report
}

// Ready reports whether the guest is up: the agent answers, the network is
// configured (when enabled), and cloud-init has ended, well or not, or is absent.
func (c Conditions) Ready() bool {
	return c.Agent.Status == True &&
		(c.Network.Status == True || c.Network.Reason == "Disabled") &&
		(c.CloudInit.Status == True || c.CloudInit.Reason == "Failed" ||
			c.CloudInit.Reason == "Absent" || c.CloudInit.Reason == "Disabled")
}

// comeUpTimeout is how long after its start a guest counts as coming up. One without
// an agent never becomes ready.
const comeUpTimeout = 15 * time.Minute

// ComesUp reports whether the VM is being started or woken, or its guest is on its way
// to be ready. A guest that does not answer any more is not.
func (v VM) ComesUp(now time.Time) bool {
	switch {
	case v.State == Starting:
		return true
	case v.State != Running || v.Conditions.Agent.Status == False || v.Conditions.Ready():
		return false
	}
	return v.StartedAt != nil && now.Sub(*v.StartedAt) < comeUpTimeout
}

// Boots reports whether the guest of a running VM has just begun to boot: its agent has
// not answered yet.
func (v VM) Boots() bool { return v.State == Running && v.Conditions.Agent.Reason == reasonBooting }

// Moved returns the condition with new values; the time of change moves only
// when one of them differs.
func (c Condition) Moved(status Status, reason, message string, now time.Time) Condition {
	if c.Status == status && c.Reason == reason && c.Message == message {
		return c
	}
	return Condition{Status: status, Reason: reason, Message: message, ChangedAt: now}
}

// reasonGoingDown is the reason of the agent's condition in a guest that will end soon.
const reasonGoingDown = "GoingDown"

// ToReported records an agent's report in the conditions of a VM with a running or
// paused machine; nil means that the session with the agent was lost.
func ToReported(r *GuestReport, now time.Time) func(*VM) {
	return func(v *VM) {
		if v.State == Running || v.State == Paused {
			v.Conditions = observed(*v, r, now)
		}
	}
}

func observed(v VM, r *GuestReport, now time.Time) Conditions {
	c := v.Conditions
	if r == nil {
		if c.Agent.Status == True {
			c.Agent = Condition{Status: False, Reason: "Lost", Message: "the agent in the guest no longer answers", ChangedAt: now}
		}
		return c
	}
	c.BootID, c.SSH = r.BootID, r.SSH
	if r.GoingDown {
		c.Agent = c.Agent.Moved(False, reasonGoingDown, "the guest shuts down or reboots", now)
	} else {
		c.Agent = c.Agent.Moved(True, "Answering", "", now)
	}
	if v.EnableNetwork {
		if slices.Contains(r.Addresses, v.Lease.Address) {
			c.Network = c.Network.Moved(True, "AddressSet", "", now)
		} else {
			c.Network = c.Network.Moved(False, "NoAddress", "the guest does not have its address "+v.Lease.Address.String(), now)
		}
	}
	c.CloudInit = c.CloudInit.movedBy(r.CloudInit, v.UserData != "", now)
	return c
}

// movedBy returns the condition of cloud-init after a report.
func (c Condition) movedBy(ci CloudInit, hasUserData bool, now time.Time) Condition {
	lost := ""
	if hasUserData {
		lost = "; user_data was not applied"
	}
	switch ci.Status {
	case "absent":
		return c.Moved(False, "Absent", "the image has no cloud-init"+lost, now)
	case "disabled":
		return c.Moved(False, "Disabled", "cloud-init is disabled in the guest"+lost, now)
	case "running":
		return c.Moved(False, "Running", "cloud-init is running", now)
	case "done":
		if len(ci.Warnings) > 0 {
			return c.Moved(True, "Degraded", "cloud-init is done, with warnings: "+strings.Join(ci.Warnings, "; "), now)
		}
		return c.Moved(True, "Done", "", now)
	case "error":
		return c.Moved(False, "Failed", "cloud-init failed: "+strings.Join(ci.Errors, "; "), now)
	default:
		return c
	}
}
