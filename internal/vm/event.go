package vm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/machine"
)

// About returns e as an event about the VM.
func (v VM) About(e event.Event) event.Event {
	e.OwnerID, e.VMID, e.VMName = v.OwnerID, v.ID, v.Name
	return e
}

// created, stateChanged, updated and conditionChanged are the data of events.
type (
	created struct {
		ImageID    string `json:"image_id"`
		TemplateID string `json:"template_id,omitempty"`
		VCPUs      int    `json:"vcpu_count"`
		MemMiB     int    `json:"mem_mib"`
		DiskMiB    int    `json:"disk_mib"`
		Driver     string `json:"vmm"`
		SnapshotID string `json:"snapshot_id,omitempty"`
		ClonedFrom string `json:"cloned_from_vm_id,omitempty"`
	}
	stateChanged struct {
		From   State  `json:"from"`
		To     State  `json:"to"`
		Reason string `json:"reason,omitempty"`
	}
	updated struct {
		Fields []string `json:"fields"`
	}
	conditionChanged struct {
		Condition string `json:"condition"`
		From      Status `json:"from"`
		To        Status `json:"to"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message,omitempty"`
	}
)

// CreatedEvent is the event of a new VM.
func CreatedEvent(v VM) event.Event {
	cpus := "1 CPU"
	if v.VCPUs != 1 {
		cpus = fmt.Sprintf("%d CPUs", v.VCPUs)
	}
	from, source := v.ImageID, v.ClonedFrom
	switch {
	case source.Snapshot != "":
		from = fmt.Sprintf("snapshot %s (%s) of %s", source.SnapshotID, source.Snapshot, source.VMID)
	case source.SnapshotID != "":
		from = fmt.Sprintf("snapshot %s of %s", source.SnapshotID, source.VMID)
	case source.VMID != "":
		from = fmt.Sprintf("%s as a fork", source.VMID)
	}
	message := fmt.Sprintf("created from %s with %s, %d MiB of memory and a disk of %d MiB", from, cpus, v.MemMiB, v.DiskMiB)
	return v.About(event.Of(event.VMCreated, message, created{v.ImageID, v.TemplateID, v.VCPUs, v.MemMiB, v.DiskMiB, v.Driver, source.SnapshotID, source.VMID}))
}

// DeletedEvent is the event of a deleted VM.
func DeletedEvent(v VM) event.Event {
	return v.About(event.Of(event.VMDeleted, "deleted", nil))
}

// Changes returns the events of a change of one VM.
func Changes(before, after VM) []event.Event {
	var events []event.Event
	if after.State != before.State || (after.StateReason != before.StateReason && after.StateReason != "") {
		events = append(events, after.About(stateEvent(before.State, after.State, after.StateReason)))
	}
	if fields := changedFields(before, after); len(fields) > 0 {
		message := "changed " + strings.Join(fields, ", ")
		events = append(events, after.About(event.Of(event.VMUpdated, message, updated{fields})))
	}
	b, a := before.Conditions, after.Conditions
	for _, c := range []struct {
		name          string
		before, after Condition
		holds         string
	}{
		{"network_ready", b.Network, a.Network, "the guest has its address"},
		{"agent_ready", b.Agent, a.Agent, "the agent in the guest answers"},
		{"cloud_init_done", b.CloudInit, a.CloudInit, "cloud-init is done"},
	} {
		if c.before.differs(c.after) {
			events = append(events, after.About(conditionEvent(c.name, c.before, c.after, c.holds)))
		}
	}
	if b.VMM.differs(a.VMM) && (a.VMM.Status == False || (b.VMM.Status == False && a.VMM.Status == True)) {
		events = append(events, after.About(conditionEvent("vmm_healthy", b.VMM, a.VMM, "the VMM answers, and the guest runs")))
	}
	return events
}

// changedFields returns what an owner has changed, as requests name it.
func changedFields(before, after VM) (fields []string) {
	for _, f := range []struct {
		name    string
		changed bool
	}{
		{"name", before.Name != after.Name},
		{"description", before.Description != after.Description},
		{"labels", !maps.Equal(before.Labels, after.Labels)},
		{"vcpu_count", before.VCPUs != after.VCPUs},
		{"mem_mib", before.MemMiB != after.MemMiB},
		{"implicit_routes", before.ImplicitRoutes != after.ImplicitRoutes},
		{"idle", before.Idle != after.Idle},
		{"expires_at", !before.Expiry.At.Equal(after.Expiry.At)},
		{"expire_action", before.Expiry.Action != after.Expiry.Action},
		{"ports", !slices.EqualFunc(before.Ports, after.Ports, machine.Port.Equal)},
	} {
		if f.changed {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// differs reports whether now says something that c does not.
func (c Condition) differs(now Condition) bool {
	before, after := cmp.Or(c.Status, Unknown), cmp.Or(now.Status, Unknown)
	if before == Unknown && after == Unknown {
		return false // why it is not known follows from the state
	}
	return before != after || c.Reason != now.Reason || c.Message != now.Message
}

func stateEvent(from, to State, reason string) event.Event {
	message := string(to)
	if to == Failed {
		message = "in error"
	}
	if reason != "" {
		message += ": " + reason
	}
	return event.Of(event.VMStateChanged, message, stateChanged{from, to, event.Brief(reason)})
}

func conditionEvent(name string, from, to Condition, holds string) event.Event {
	status := cmp.Or(to.Status, Unknown)
	message := to.Message
	switch {
	case status == True:
		message = cmp.Or(message, holds)
	case message == "":
		message = name + " is " + string(status)
	}
	return event.Of(event.VMConditionChanged, message, conditionChanged{
		Condition: name, From: cmp.Or(from.Status, Unknown), To: status, Reason: to.Reason, Message: event.Brief(to.Message),
	})
}
