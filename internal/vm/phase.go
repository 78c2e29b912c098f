package vm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Phase is one legal combination of a VM's state, intent, sleep, clone mark,
// machine and autostart. The table below lists all of them; the functions below
// it are the only code that changes the six together.
type Phase string

// The phases.
const (
	PhaseStarting  Phase = "starting"  // its machine is being made; nothing runs yet
	PhaseWaking    Phase = "waking"    // asleep, and leased again for a wake or a cold start
	PhaseRunning   Phase = "running"   // the CPUs run
	PhasePaused    Phase = "paused"    // the CPUs stand still, the machine lives
	PhaseStopping  Phase = "stopping"  // asked to end, not ended yet
	PhaseStopped   Phase = "stopped"   // no machine; the disk stays
	PhaseAsleep    Phase = "asleep"    // no machine; memory is in RAM or on disk
	PhaseRestoring Phase = "restoring" // a snapshot is staged; it replaces memory and disk next
	PhaseFailed    Phase = "failed"    // the last transition failed; the reason is in the row
	PhaseStuck     Phase = "stuck"     // failed, and its VMM could not be ended: to be deleted only
)

// sleepKind is how a VM's memory is saved.
type sleepKind string

const (
	awake    sleepKind = "none"
	volatile sleepKind = "volatile" // in RAM only
	durable  sleepKind = "durable"  // on disk
	staged   sleepKind = "staged"   // beside the VM's own memory and disk
)

// presence says whether the row may or must name a machine.
type presence int

const (
	absent  presence = iota // no handle
	present                 // a handle
	either                  // a handle may be left of a machine that has ended or could not be ended
)

// phaseRow is one row of the table.
type phaseRow struct {
	phase   Phase
	state   State
	intents []Intent
	sleeps  []sleepKind
	clones  []CloneKind
	machine presence
	back    []Autostart
}

var (
	anyIntent = []Intent{IntentRunning, IntentStopped, IntentAsleep, IntentDeleted}
	noClone   = []CloneKind{""}
	aClone    = []CloneKind{FromSnapshot, FromWarm}
	isAwake   = []sleepKind{awake}
	isAsleep  = []sleepKind{volatile, durable}
	stays     = []Autostart{NoAutostart}
	boots     = []Autostart{NoAutostart, AutostartRunning}
	wakes     = []Autostart{NoAutostart, AutostartRunning, AutostartPaused}
)

// phases is the table. An intent of deleted goes with every phase: a delete
// may be cut short anywhere.
var phases = []phaseRow{
	// The lease sets the state before the intent follows, hence any intent.
	{PhaseStarting, Starting, anyIntent, isAwake, noClone, either, boots},
	{PhaseStarting, Starting, anyIntent, isAwake, aClone, either, stays},
	{PhaseWaking, Starting, []Intent{IntentAsleep, IntentRunning, IntentDeleted}, isAsleep, noClone, absent, wakes},
	// Intent stopped: a stop that the end of hatchd cut short, before it is repeated.
	{PhaseRunning, Running, []Intent{IntentRunning, IntentStopped, IntentDeleted}, isAwake, noClone, present, stays},
	{PhasePaused, Paused, []Intent{IntentRunning, IntentStopped, IntentDeleted}, isAwake, noClone, present, stays},
	{PhaseStopping, Stopping, []Intent{IntentStopped, IntentDeleted}, isAwake, noClone, present, boots},
	{PhaseStopped, Stopped, []Intent{IntentStopped, IntentDeleted}, isAwake, noClone, absent, boots},
	{PhaseAsleep, Snapshotted, []Intent{IntentAsleep, IntentRunning, IntentDeleted}, isAsleep, noClone, absent, wakes},
	{PhaseRestoring, Snapshotted, []Intent{IntentAsleep, IntentDeleted}, []sleepKind{staged}, noClone, either, stays},
	{PhaseFailed, Failed, anyIntent, isAwake, noClone, either, stays},
	{PhaseStuck, Failed, anyIntent, isAwake, aClone, either, stays},
}

// Phase returns the VM's phase, and false for a combination that the table
// does not have.
func (v VM) Phase() (Phase, bool) {
	for _, row := range phases {
		if row.fits(v) {
			return row.phase, true
		}
	}
	return "", false
}

func (row phaseRow) fits(v VM) bool {
	machine := v.Machine != nil
	return v.State == row.state && slices.Contains(row.intents, v.Intent) &&
		slices.Contains(row.sleeps, v.sleepKind()) && slices.Contains(row.clones, v.Unconfirmed) && slices.Contains(row.back, v.Autostart) &&
		(row.machine == either || machine == (row.machine == present))
}

func (v VM) sleepKind() sleepKind {
	switch {
	case v.Sleep == nil:
		return awake
	case v.Sleep.Staged:
		return staged
	case v.Sleep.Durable:
		return durable
	default:
		return volatile
	}
}

// Asleep reports whether the VM's memory is saved instead of running.
func (v VM) Asleep() bool { return v.Sleep != nil }

// Restoring reports whether a snapshot is staged for the VM that is not in
// place yet.
func (v VM) Restoring() bool { return v.Sleep != nil && v.Sleep.Staged }

// Volatile reports whether the VM is asleep with its memory in RAM only.
func (v VM) Volatile() bool { return v.sleepKind() == volatile }

// comesBack returns what a VM comes back to if its host goes down now.
func (v VM) comesBack() Autostart {
	switch {
	case v.Autostart != NoAutostart:
		return v.Autostart
	case v.Intent != IntentRunning || v.OwnerID == access.SystemID:
		return NoAutostart
	case v.State == Running:
		return AutostartRunning
	case v.State == Paused:
		return AutostartPaused
	default:
		return NoAutostart
	}
}

// DownWithHost makes change a part of the host's going down: a VM that ran comes
// back at the next start of hatchd. change is ToStopping, ToStopped or ToAsleep.
func DownWithHost(change func(*VM)) func(*VM) {
	return func(v *VM) {
		back := v.comesBack()
		change(v)
		v.comeBackTo(back)
		if v.State == Snapshotted {
			v.StateReason = "put to sleep for the shutdown of the host"
			slept := *v.Sleep
			slept.Rule = RuleShutdown
			v.Sleep = &slept
		}
	}
}

// comeBackTo sets Autostart. Without memory there is nothing to pause.
func (v *VM) comeBackTo(back Autostart) {
	if back == AutostartPaused && !v.Asleep() {
		back = AutostartRunning
	}
	v.Autostart = back
}

// ToStaying records that hatchd does not bring the VM back, and why not, unless
// that was decided before. Without a reason the old one stays.
func ToStaying(reason string) func(*VM) {
	return func(v *VM) {
		if v.Autostart != NoAutostart {
			v.Autostart, v.StateReason = NoAutostart, cmp.Or(reason, v.StateReason)
		}
	}
}

// ToReturning records that hatchd starts a stopped VM when the host has started
// again, and why it is down until then.
func ToReturning(reason string) func(*VM) {
	return func(v *VM) {
		if v.State == Stopped {
			v.Autostart, v.StateReason = AutostartRunning, reason
		}
	}
}

// ToStarting begins a start. What was saved of the memory no longer counts. A VM
// that is to come back still is, if this start is cut short.
func ToStarting(v *VM) {
	v.State, v.StateReason, v.Intent, v.Sleep = Starting, "", IntentRunning, nil
	v.comeBackTo(v.Autostart)
}

// ToCloning marks a starting VM as a clone that has not confirmed its identity;
// "" takes the mark away.
func ToCloning(kind CloneKind) func(*VM) {
	return func(v *VM) { v.Unconfirmed, v.Autostart = kind, NoAutostart }
}

// ToRunning records a machine that has just begun to run.
func ToRunning(h vmm.Handle, now time.Time) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Intent = Running, "", IntentRunning
		v.Machine, v.Provisioned, v.StartedAt = &h, true, &now
		v.Unconfirmed, v.Autostart, v.Conditions = "", NoAutostart, bootConditions(v, now)
	}
}

// ToAdopted records a machine that an earlier hatchd started. The intent stays,
// unless it contradicts a guest that runs, or the host did not go down after all.
func ToAdopted(h vmm.Handle, paused bool, now time.Time) func(*VM) {
	return func(v *VM) {
		if v.StartedAt == nil || v.State == Starting {
			v.StartedAt, v.Conditions = &now, bootConditions(v, now)
		}
		v.State, v.StateReason, v.Machine, v.Provisioned = Running, "", &h, true
		if v.Intent == IntentAsleep || (v.Intent == IntentStopped && v.Autostart != NoAutostart) {
			v.Intent = IntentRunning
		}
		v.Autostart = NoAutostart
		if v.Conditions.VMM.Status == "" { // of a hatchd that did not ask
			v.Conditions.VMM = healthy(now)
		}
		if paused {
			v.State = Paused
		}
	}
}

// ToPaused records that the CPUs stand still on request.
func ToPaused(v *VM) { v.State, v.StateReason = Paused, "paused on request" }

// ToResumed records that the CPUs run again.
func ToResumed(v *VM) { v.State, v.StateReason = Running, "" }

// ToStopping records that the machine was asked to end.
func ToStopping(v *VM) {
	v.State, v.StateReason, v.Intent, v.Autostart = Stopping, "", IntentStopped, NoAutostart
}

// ToStopped records that no machine is left, and that none is wanted.
func ToStopped(reason string) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Intent = Stopped, reason, IntentStopped
		v.Machine, v.Sleep, v.Autostart, v.Conditions = nil, nil, NoAutostart, Conditions{}
	}
}

// ToFailed records why a transition failed. provisioned tells whether the VM
// still has a disk; left names a VMM process that could not be ended, or is nil.
func ToFailed(reason string, provisioned bool, left *vmm.Handle) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Provisioned = Failed, reason, provisioned
		v.Machine, v.Sleep, v.Autostart, v.Conditions = left, nil, NoAutostart, Conditions{}
	}
}

// ToEnded records a machine that ended without a request.
func ToEnded(state State, reason string) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Machine, v.Autostart, v.Conditions = state, reason, nil, NoAutostart, Conditions{}
		if state == Stopped {
			v.Intent = IntentStopped
		}
	}
}

// ToAsleep records that the memory was saved on request: from now on the
// machine no longer counts.
func ToAsleep(s Sleep) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Intent = Snapshotted, "asleep on request", IntentAsleep
		v.Machine, v.Sleep, v.Autostart = nil, &s, NoAutostart
		v.Conditions.Agent = v.Conditions.Agent.Moved(False, "Asleep", "the VM sleeps", s.At)
		v.Conditions.VMM = Condition{}
	}
}

// ToAsleepAgain records that a wake did not happen. Intent and autostart stay.
func ToAsleepAgain(s Sleep, reason string) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Sleep, v.Machine = Snapshotted, reason, &s, nil
	}
}

// ToAsleepBecause records why a VM that sleeps is left asleep.
func ToAsleepBecause(reason string) func(*VM) {
	return func(v *VM) {
		if v.State == Snapshotted {
			v.StateReason = reason
		}
	}
}

// ToDurable records that the memory of a sleeping VM is on disk. It changes
// nothing once the VM was woken or a snapshot was staged for it.
func ToDurable(bytes int64) func(*VM) {
	return func(v *VM) {
		if v.Asleep() && !v.Restoring() {
			durable := *v.Sleep
			durable.Durable, durable.Bytes = true, bytes
			v.Sleep = &durable
			v.StateReason, _, _ = strings.Cut(v.StateReason, notOnDisk)
		}
	}
}

// notOnDisk begins the end of the reason of a VM that ToUnsaved has changed.
const notOnDisk = "; its memory is not on disk: "

// ToUnsaved records why the memory of a sleeping VM is in RAM only when its host
// goes down. The first reason stays.
func ToUnsaved(why string) func(*VM) {
	return func(v *VM) {
		if v.State == Snapshotted && v.Volatile() && !strings.Contains(v.StateReason, notOnDisk) {
			v.StateReason += notOnDisk + why
		}
	}
}

// ReasonWaking is the reason of the agent's condition after a wake, until the
// agent has answered.
const ReasonWaking = "Waking"

// ToAwake records a machine that continues from saved memory.
func ToAwake(h vmm.Handle, now time.Time) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Intent = Running, "", IntentRunning
		v.Machine, v.Sleep, v.Autostart, v.StartedAt = &h, nil, NoAutostart, &now
		v.Conditions.Agent = v.Conditions.Agent.Moved(Unknown, ReasonWaking, "the agent in the guest has not answered since the wake", now)
		v.Conditions.VMM = healthy(now)
	}
}

// ToRestoring records that a snapshot of so many bytes is staged. The machine
// stays in the row until it has been ended.
func ToRestoring(snapshotID string, bytes int64, now time.Time) func(*VM) {
	return func(v *VM) {
		v.State, v.StateReason, v.Intent = Snapshotted, fmt.Sprintf("asleep as in snapshot %s", snapshotID), IntentAsleep
		v.SnapshotID, v.Provisioned, v.Autostart = snapshotID, true, NoAutostart
		v.Sleep = &Sleep{At: now, Durable: true, Bytes: bytes, Staged: true}
		v.Conditions.Agent = v.Conditions.Agent.Moved(False, "Asleep", "the VM sleeps", now)
		v.Conditions.VMM = Condition{}
	}
}

// ToRestored records that the staged snapshot has taken the place of the VM's
// memory and disk.
func ToRestored(v *VM) {
	v.Machine = nil
	if v.Sleep != nil {
		inPlace := *v.Sleep
		inPlace.Staged = false
		v.Sleep = &inPlace
	}
}

// ToDeleting records that the owner wants the VM gone.
func ToDeleting(v *VM) { v.Intent, v.Autostart = IntentDeleted, NoAutostart }

// reasonBooting is the reason of conditions of which nothing is known since the boot.
const reasonBooting = "Booting"

// bootConditions is what is known of a guest that has just begun to boot.
func bootConditions(v *VM, now time.Time) Conditions {
	booting := Condition{Status: Unknown, Reason: reasonBooting, ChangedAt: now}
	c := Conditions{Network: booting, Agent: booting, VMM: healthy(now), CloudInit: booting}
	c.Agent.Message = "the agent in the guest has not answered yet"
	if !v.EnableNetwork {
		c.Network = Condition{Status: False, Reason: "Disabled", Message: "the VM has no network", ChangedAt: now}
	}
	return c
}
