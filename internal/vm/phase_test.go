package vm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vmm"
)

var phaseTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// example returns VMs of every combination that a row of the table allows.
func (row phaseRow) examples() []VM {
	var all []VM
	for _, intent := range row.intents {
		for _, sleep := range row.sleeps {
			for _, clone := range row.clones {
				for _, has := range []bool{false, true} {
					if row.machine != either && has != (row.machine == present) {
						continue
					}
					v := VM{ID: "vm_abc123def456", State: row.state, Intent: intent, Unconfirmed: clone}
					if has {
						v.Machine = &vmm.Handle{PID: 7}
					}
					if sleep != awake {
						v.Sleep = &Sleep{At: phaseTime, Durable: sleep != volatile, Staged: sleep == staged}
					}
					for _, v.Autostart = range row.back {
						all = append(all, v)
					}
				}
			}
		}
	}
	return all
}

func TestEachCombinationHasOnePhase(t *testing.T) {
	for _, row := range phases {
		for _, v := range row.examples() {
			fitting := 0
			for _, other := range phases {
				if other.fits(v) {
					fitting++
				}
			}
			if got, legal := v.Phase(); !legal || got != row.phase || fitting != 1 {
				t.Errorf("%s: %+v is %q, legal %v, and fits %d rows", row.phase, v, got, legal, fitting)
			}
		}
	}
}

func TestOtherCombinationsAreIllegal(t *testing.T) {
	machine := &vmm.Handle{PID: 7}
	for name, v := range map[string]VM{
		"running without a machine":        {State: Running, Intent: IntentRunning},
		"running and asleep":               {State: Running, Intent: IntentRunning, Machine: machine, Sleep: &Sleep{}},
		"running, not confirmed":           {State: Running, Intent: IntentRunning, Machine: machine, Unconfirmed: FromSnapshot},
		"stopped with a machine":           {State: Stopped, Intent: IntentStopped, Machine: machine},
		"stopped, meant to run":            {State: Stopped, Intent: IntentRunning},
		"asleep with a machine":            {State: Snapshotted, Intent: IntentAsleep, Machine: machine, Sleep: &Sleep{}},
		"snapshotted without memory":       {State: Snapshotted, Intent: IntentAsleep},
		"failed and asleep":                {State: Failed, Intent: IntentAsleep, Sleep: &Sleep{}},
		"an unconfirmed clone that sleeps": {State: Snapshotted, Intent: IntentAsleep, Sleep: &Sleep{}, Unconfirmed: FromWarm},
		"no state":                         {Intent: IntentRunning},
		"running, and to come back":        {State: Running, Intent: IntentRunning, Machine: machine, Autostart: AutostartRunning},
		"failed, and to come back":         {State: Failed, Intent: IntentRunning, Autostart: AutostartRunning},
		"stopped, and to come back paused": {State: Stopped, Intent: IntentStopped, Autostart: AutostartPaused},
	} {
		t.Run(name, func(t *testing.T) {
			if phase, legal := v.Phase(); legal {
				t.Errorf("it is %s", phase)
			}
		})
	}
}

// TestMovesLeadToTheirPhase applies each move where the code applies it.
func TestMovesLeadToTheirPhase(t *testing.T) {
	handle := vmm.Handle{PID: 7}
	slept := Sleep{At: phaseTime}
	moves := []struct {
		name string
		from []Phase
		move func(*VM)
		to   string // phases, separated by spaces
	}{
		{"ToStarting", []Phase{PhaseStarting, PhaseWaking}, ToStarting, "starting"},
		{"ToCloning", []Phase{PhaseStarting}, ToCloning(FromWarm), "starting"},
		{"ToRunning", []Phase{PhaseStarting, PhaseRunning}, ToRunning(handle, phaseTime), "running"},
		{"ToAdopted", []Phase{PhaseRunning, PhaseStopping, PhasePaused}, ToAdopted(handle, false, phaseTime), "running"},
		{"ToAdopted paused", []Phase{PhasePaused}, ToAdopted(handle, true, phaseTime), "paused"},
		{"ToPaused", []Phase{PhaseRunning, PhasePaused}, ToPaused, "paused"},
		{"ToResumed", []Phase{PhaseRunning, PhasePaused}, ToResumed, "running"},
		{"ToStopping", []Phase{PhaseRunning, PhasePaused}, ToStopping, "stopping"},
		{"ToStopped", []Phase{PhaseStopping, PhaseFailed, PhaseAsleep, PhaseRunning}, ToStopped("on request"), "stopped"},
		{"ToFailed", []Phase{PhaseStarting, PhaseWaking, PhaseRunning}, ToFailed("why", true, nil), "failed stuck"},
		{"ToFailed with a process", []Phase{PhaseStarting}, ToFailed("why", false, &handle), "failed stuck"},
		{"ToEnded by the guest", []Phase{PhaseRunning, PhasePaused}, ToEnded(Stopped, "why"), "stopped"},
		{"ToEnded by a crash", []Phase{PhaseRunning, PhasePaused}, ToEnded(Failed, "why"), "failed"},
		{"ToAsleep", []Phase{PhaseRunning}, ToAsleep(slept), "asleep"},
		{"ToAsleepAgain", []Phase{PhaseWaking}, ToAsleepAgain(slept, "why"), "asleep"},
		{"ToDurable", []Phase{PhaseAsleep}, ToDurable(1), "asleep"},
		{"ToAwake", []Phase{PhaseWaking}, ToAwake(handle, phaseTime), "running"},
		{"ToRestoring", []Phase{PhaseRunning, PhasePaused, PhaseStopped, PhaseAsleep, PhaseFailed}, ToRestoring("snap_a", 1, phaseTime), "restoring"},
		{"ToRestored", []Phase{PhaseRestoring}, ToRestored, "asleep"},
		{"ToStaying", []Phase{PhaseStopped, PhaseAsleep, PhaseStarting, PhaseFailed}, ToStaying("why"), "stopped asleep starting failed"},
		{"ToStopping with the host", []Phase{PhaseRunning, PhasePaused}, DownWithHost(ToStopping), "stopping"},
		{"ToStopped with the host", []Phase{PhaseStopping, PhaseRunning, PhasePaused, PhaseAsleep}, DownWithHost(ToStopped("why")), "stopped"},
		{"ToAsleep with the host", []Phase{PhaseRunning, PhasePaused}, DownWithHost(ToAsleep(slept)), "asleep"},
	}
	for _, m := range moves {
		t.Run(m.name, func(t *testing.T) {
			for _, row := range phases {
				for _, v := range row.examples() {
					if v.Intent == IntentDeleted || !slices.Contains(m.from, row.phase) {
						continue
					}
					m.move(&v)
					if got, legal := v.Phase(); !legal || !strings.Contains(" "+m.to+" ", " "+string(got)+" ") {
						t.Errorf("from %s: %q, legal %v: %+v", row.phase, got, legal, v)
					}
				}
			}
		})
	}
}

func TestDeletingIsLegalInEveryPhase(t *testing.T) {
	for _, row := range phases {
		for _, v := range row.examples() {
			ToDeleting(&v)
			if got, legal := v.Phase(); !legal || got != row.phase {
				t.Errorf("%s: %q, legal %v", row.phase, got, legal)
			}
		}
	}
}

func TestDurableChangesNoVMThatWasWokenMeanwhile(t *testing.T) {
	for _, v := range []VM{{State: Running}, {State: Snapshotted, Sleep: &Sleep{Staged: true}}} {
		before := v
		ToDurable(5)(&v)
		if v.Sleep != before.Sleep {
			t.Errorf("%+v became %+v", before, v)
		}
	}
}

// A VM comes back only if its owner wanted it to run when the host went down.
func TestWhatComesBackWithTheHost(t *testing.T) {
	slept := ToAsleep(Sleep{At: phaseTime})
	stop := func(v *VM) { DownWithHost(ToStopping)(v); DownWithHost(ToStopped("why"))(v) }
	for name, c := range map[string]struct {
		v    VM
		down func(*VM)
		want Autostart
	}{
		"running, put to sleep":            {VM{State: Running, Intent: IntentRunning}, DownWithHost(slept), AutostartRunning},
		"running, stopped":                 {VM{State: Running, Intent: IntentRunning}, stop, AutostartRunning},
		"paused, put to sleep":             {VM{State: Paused, Intent: IntentRunning}, DownWithHost(slept), AutostartPaused},
		"paused, its memory lost":          {VM{State: Paused, Intent: IntentRunning}, stop, AutostartRunning},
		"its memory lost while it slept":   {VM{State: Snapshotted, Intent: IntentAsleep, Sleep: &Sleep{}, Autostart: AutostartPaused}, DownWithHost(ToStopped("why")), AutostartRunning},
		"asleep on request, memory lost":   {VM{State: Snapshotted, Intent: IntentAsleep, Sleep: &Sleep{}}, DownWithHost(ToStopped("why")), NoAutostart},
		"stopping on request":              {VM{State: Stopping, Intent: IntentStopped}, DownWithHost(ToStopped("why")), NoAutostart},
		"running, a stop was cut short":    {VM{State: Running, Intent: IntentStopped}, stop, NoAutostart},
		"being deleted":                    {VM{State: Running, Intent: IntentDeleted}, stop, NoAutostart},
		"hatchd's own, for the warm pool":  {VM{State: Running, Intent: IntentRunning, OwnerID: access.SystemID}, stop, NoAutostart},
		"stopped by its owner after that":  {VM{State: Running, Intent: IntentRunning}, func(v *VM) { stop(v); ToStopped("on request")(v) }, NoAutostart},
		"deleted by its owner after that":  {VM{State: Running, Intent: IntentRunning}, func(v *VM) { stop(v); ToDeleting(v) }, NoAutostart},
		"its comeback begun and cut short": {VM{State: Running, Intent: IntentRunning}, func(v *VM) { stop(v); ToStarting(v) }, AutostartRunning},
		"it is back":                       {VM{State: Running, Intent: IntentRunning}, func(v *VM) { stop(v); ToStarting(v); ToRunning(vmm.Handle{}, phaseTime)(v) }, NoAutostart},
	} {
		t.Run(name, func(t *testing.T) {
			if c.down(&c.v); c.v.Autostart != c.want {
				t.Errorf("it comes back to %q, want %q", c.v.Autostart, c.want)
			}
		})
	}
}
