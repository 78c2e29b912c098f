package vm

import (
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Health is how a VM's machine is, as hatchd sees it.
type Health struct {
	Silent     bool     // the VMM does not answer; the rest is not known
	Halt       vmm.Halt // why the CPUs stand still
	DiskErrors bool     // the guest was told of errors of its disks in the last minutes
}

// Reasons of the condition of a machine.
const (
	ReasonUnresponsive = "Unresponsive"
	ReasonHostDiskFull = "HostDiskFull"
	ReasonDiskErrors   = "DiskErrors"
	reasonVMMError     = "VMMError"
	reasonAnswering    = "Answering"
)

// healthy is the condition of a machine that has just begun to run.
func healthy(now time.Time) Condition {
	return Condition{Status: True, Reason: reasonAnswering, ChangedAt: now}
}

// ToChecked records how the machine of a running or paused VM is.
func ToChecked(h Health, now time.Time) func(*VM) {
	return func(v *VM) { v.Conditions.VMM = v.checked(h, now) }
}

// IsNews reports whether ToChecked would change the VM.
func (v VM) IsNews(h Health) bool {
	return v.Conditions.VMM != v.checked(h, v.Conditions.VMM.ChangedAt)
}

// checked returns the condition of the VM's machine.
func (v VM) checked(h Health, now time.Time) Condition {
	c := v.Conditions.VMM
	switch {
	case v.State != Running && v.State != Paused:
		return c
	case h.Silent:
		return c.Moved(False, ReasonUnresponsive, "the VMM does not answer; a stop or a delete ends it", now)
	case v.State == Paused: // on request: nothing else is to run
		return c.Moved(True, reasonAnswering, "", now)
	}
	switch h.Halt {
	case vmm.HaltNoSpace:
		return c.Moved(False, ReasonHostDiskFull, "the guest stands still, because the host's disk is full; it continues by itself once there is room", now)
	case vmm.HaltIOError:
		return c.Moved(False, ReasonDiskErrors, "the guest stands still, because the host's disk fails", now)
	case vmm.HaltInternal:
		return c.Moved(False, reasonVMMError, "the guest stands still, because its VMM cannot run it any further; restart the VM", now)
	case vmm.HaltPaused: // an operation goes on, or it is resumed next
		return c
	}
	if h.DiskErrors {
		return c.Moved(False, ReasonDiskErrors, "the host's disk failed requests of the guest, and the guest was told so", now)
	}
	return c.Moved(True, reasonAnswering, "", now)
}

// Contradicts reports whether the CPUs stand still though they should run, or the
// reverse. Without an operation in progress, hatchd puts that right.
func (v VM) Contradicts(h Health) bool {
	switch {
	case h.Silent || h.Halt == vmm.HaltInternal:
		return false
	case h.Halt == vmm.NotHalted:
		return v.State == Paused
	default:
		return v.State == Running
	}
}
