package vm

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vmm"
)

// about returns e as an event about the VM.
func (v VM) about(e event.Event) event.Event {
	e.OwnerID, e.VMID, e.VMName = v.OwnerID, v.ID, v.Name
	return e
}

// created, stateChanged, conditionChanged and operated are the data of events.
type (
	created struct {
		ImageID    string `json:"image_id"`
		TemplateID string `json:"template_id,omitempty"`
		VCPUs      int    `json:"vcpu_count"`
		MemMiB     int    `json:"mem_mib"`
		DiskMiB    int    `json:"disk_mib"`
		Driver     string `json:"vmm"`
	}
	stateChanged struct {
		From   State  `json:"from"`
		To     State  `json:"to"`
		Reason string `json:"reason,omitempty"`
	}
	conditionChanged struct {
		Condition string `json:"condition"`
		From      Status `json:"from"`
		To        Status `json:"to"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message,omitempty"`
	}
	operated struct {
		Operation  string `json:"operation"`
		Outcome    string `json:"outcome"` // succeeded or failed
		DurationMS int64  `json:"duration_ms"`
		Error      string `json:"error,omitempty"`
		Code       string `json:"code,omitempty"`
	}
)

// CreatedEvent tells that the VM was made.
func CreatedEvent(v VM) event.Event {
	cpus := "1 CPU"
	if v.VCPUs != 1 {
		cpus = fmt.Sprintf("%d CPUs", v.VCPUs)
	}
	message := fmt.Sprintf("created from %s with %s, %d MiB of memory and a disk of %d MiB", v.ImageID, cpus, v.MemMiB, v.DiskMiB)
	return v.about(event.Of(event.VMCreated, message, created{v.ImageID, v.TemplateID, v.VCPUs, v.MemMiB, v.DiskMiB, v.Driver}))
}

// DeletedEvent tells that the VM is gone.
func DeletedEvent(v VM) event.Event {
	return v.about(event.Of(event.VMDeleted, "deleted", nil))
}

// Changes returns the events that tell of a change of one VM.
func Changes(before, after VM) []event.Event {
	var events []event.Event
	if after.State != before.State || (after.StateReason != before.StateReason && after.StateReason != "") {
		events = append(events, after.about(stateEvent(before.State, after.State, after.StateReason)))
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
		if c.before.tellsOther(c.after) {
			events = append(events, after.about(conditionEvent(c.name, c.before, c.after, c.holds)))
		}
	}
	return events
}

// tellsOther reports whether somebody who knew c learns something from now.
func (c Condition) tellsOther(now Condition) bool {
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
		message = holds
	case message == "":
		message = name + " is " + string(status)
	}
	return event.Of(event.VMConditionChanged, message, conditionChanged{
		Condition: name, From: cmp.Or(from.Status, Unknown), To: status, Reason: to.Reason, Message: event.Brief(to.Message),
	})
}

// tell adds to the log how an operation on the VM has ended.
func (s *Service) tell(ctx context.Context, v VM, operation string, began time.Time, err error) {
	took := time.Since(began)
	data := operated{Operation: operation, Outcome: "succeeded", DurationMS: took.Milliseconds()}
	message := fmt.Sprintf("%s took %s", operation, took.Round(time.Millisecond))
	if err != nil {
		data.Outcome, data.Error = "failed", event.Brief(publicMessage(err))
		message = fmt.Sprintf("%s failed after %s: %s", operation, took.Round(time.Millisecond), data.Error)
		var e *errs.Error
		if asError(err, &e) {
			data.Code = e.Code
		}
	}
	s.append(ctx, v, event.Of(event.VMOperation, message, data))
}

// append adds to the log what no change of the VM's row tells.
func (s *Service) append(ctx context.Context, v VM, e event.Event) {
	if err := s.deps.Store.AppendEvents(ctx, v.about(e)); err != nil {
		s.deps.Log.Error("cannot add to the log of events", "vm", v.ID, "type", e.Type, "message", e.Message, "err", err)
	}
}

// told runs an operation and adds to the log how it ended.
func (s *Service) told(ctx context.Context, v VM, operation string, do func(context.Context, VM) (VM, error)) (VM, error) {
	began := time.Now()
	after, err := do(ctx, v)
	s.tell(ctx, v, operation, began, err)
	return after, err
}

// exitedBy says who made a machine end by itself.
func exitedBy(cause vmm.ExitCause) event.ActorKind {
	switch cause {
	case vmm.ExitShutdown, vmm.ExitReset, vmm.ExitPanic:
		return event.Guest
	default:
		return event.Daemon
	}
}
