package vm

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/machine"
)

// Activity is the last that a VM was used for.
type Activity struct {
	At    time.Time `json:"at"`
	Cause string    `json:"cause"`          // such as exec, ssh or cpu
	Peer  string    `json:"peer,omitempty"` // who used it, if known: an address, a route, a key
}

// String returns the activity without its time, as a part of a sentence.
func (a Activity) String() string {
	if a.Peer == "" {
		return a.Cause
	}
	return a.Cause + " by " + a.Peer
}

type arrivalKey struct{}

// WithArrival returns a context that carries what a VM is woken for.
func WithArrival(ctx context.Context, a Activity) context.Context {
	return context.WithValue(ctx, arrivalKey{}, a)
}

// ArrivalOf returns what the context's VM is woken for; ok is false for a wake on request.
func ArrivalOf(ctx context.Context) (a Activity, ok bool) {
	a, ok = ctx.Value(arrivalKey{}).(Activity)
	return a, ok
}

// Rule is why a VM is taken down.
type Rule string

// The rules. All but the first are hatchd's own doing.
const (
	RuleRequest  Rule = "request"         // a client asked for it
	RuleIdle     Rule = "idle"            // its idle policy
	RuleExpiry   Rule = "expiry"          // its time has passed
	RuleMemory   Rule = "memory_pressure" // another VM needs its memory
	RuleShutdown Rule = "host_shutdown"
)

// Down says why a VM is put to sleep or stopped.
type Down struct {
	Rule   Rule
	Reason string   // for its row, such as "asleep on request"
	Last   Activity // before; zero if none is known
}

// DownBecause makes change, which puts a VM to sleep or stops it, tell why.
func DownBecause(d Down, change func(*VM)) func(*VM) {
	return func(v *VM) {
		change(v)
		if v.State != Snapshotted && v.State != Stopped {
			return
		}
		v.StateReason = d.Reason
		if v.Sleep != nil {
			slept := *v.Sleep
			slept.Rule, slept.Last = d.Rule, d.Last
			v.Sleep = &slept
		}
	}
}

// ToKeptAwake records why a VM that was to be taken down still runs.
func ToKeptAwake(reason string) func(*VM) {
	return func(v *VM) {
		if v.State == Running {
			v.StateReason = reason
		}
	}
}

// Sample is what tells whether a running guest works by itself.
type Sample struct {
	At           time.Time
	CPUTime      time.Duration // of the VMM, since its start
	NetworkBytes int64         // in both directions, since its start
	Guest        GuestActivity
}

// slept and woke are the data of events.
type (
	slept struct {
		Rule       Rule      `json:"rule"`
		DurationMS int64     `json:"duration_ms"`
		Last       *Activity `json:"last_activity,omitempty"`
	}
	woke struct {
		Cause      string `json:"cause"`
		Peer       string `json:"peer,omitempty"`
		DurationMS int64  `json:"duration_ms"`
	}
)

// SleptEvent is the event of a VM that has fallen asleep in the time that it took.
func SleptEvent(v VM, took time.Duration) event.Event {
	data := slept{v.Sleep.Rule, took.Milliseconds(), nil}
	message := fmt.Sprintf("fell asleep in %s", took.Round(time.Millisecond))
	if last := v.Sleep.Last; last != (Activity{}) {
		last.At, last.Peer = last.At.UTC().Truncate(time.Millisecond), event.Brief(last.Peer)
		data.Last = &last
		message += fmt.Sprintf("; the last activity was %s, %s before", last, v.Sleep.At.Sub(last.At).Round(time.Second))
	}
	return event.Of(event.VMSlept, message, data)
}

// WokeEvent is the event of a VM that was woken, in the time that it took, for what its
// context says.
func WokeEvent(ctx context.Context, took time.Duration) event.Event {
	a, ok := ArrivalOf(ctx)
	if !ok {
		a = Activity{Cause: "request"}
	}
	return event.Of(event.VMWoke, fmt.Sprintf("woken for %s in %s", a, took.Round(time.Millisecond)), woke{a.Cause, event.Brief(a.Peer), took.Milliseconds()})
}

// wakeSuspended is the data of an event.
type wakeSuspended struct {
	Failures int    `json:"failures"`
	Error    string `json:"error"`
	Code     string `json:"code,omitempty"`
}

// WakeSuspendedEvent is the event of a VM that uses wake no more, because it failed to
// wake so often in a row.
func WakeSuspendedEvent(failures int, last error) event.Event {
	data := wakeSuspended{Failures: failures, Error: event.Brief(errs.Public(last))}
	if e, ok := errs.As(last); ok {
		data.Code = e.Code
	}
	return event.Of(event.VMWakeSuspended, fmt.Sprintf("uses do not wake it any more: it could not be woken %d times, at last: %s", failures, data.Error), data)
}

// WakeResumedEvent is the event of a VM that uses wake again.
func WakeResumedEvent() event.Event {
	return event.Of(event.VMWakeResumed, "uses wake it again", nil)
}

// TakeDown is how hatchd takes a VM down by itself.
type TakeDown struct {
	Action      machine.Action // sleep or stop
	Rule        Rule
	UnusedSince time.Time                  // a use after it keeps the VM as it is; zero: none does
	NoWait      bool                       // an operation in progress is not waited for
	Still       func(VM) bool              // reports, of the VM as it is now, whether there is a reason
	Reason      func(last Activity) string // for its row
}

// expired is the data of an event.
type expired struct {
	ExpiresAt time.Time      `json:"expires_at"`
	Action    machine.Action `json:"action"`
}

// ExpiredEvent is the event of a VM of which its expiry has made an end.
func ExpiredEvent(v VM) event.Event {
	at := v.Expiry.At.UTC().Truncate(time.Second)
	message := fmt.Sprintf("its time passed at %s; action: %s", at.Format(time.RFC3339), v.Expiry.Action)
	return v.About(event.Of(event.VMExpired, message, expired{at, v.Expiry.Action}))
}
