// Package event is about what has happened: a log of every change of a VM and
// of every operation on one, in words, with who caused it.
//
// The store writes an event in the same transaction as the change it tells of,
// so that neither is ever there without the other, and numbers events in the
// order of their commits, so that who has read up to one number has missed
// nothing. Whoever acts says for whom with [WithCause]; the context carries it
// to the store. Start at [Event]; types.go lists what can happen, service.go is
// how the log is read, and prune.go how it is kept small.
package event

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// IDPrefix starts every event's id.
const IDPrefix = "evt_"

// Bounds on one event, in bytes.
const (
	maxMessage = 1024
	maxData    = 4096
)

// Event is one thing that has happened. [Of] makes it; the store adds Seq, ID,
// At and, where Cause is zero, the cause that its context carries.
type Event struct {
	Seq     int64 // place in the log; later events have higher ones
	ID      string
	OwnerID string
	VMID    string // "" when it is about no VM; the VM may be gone
	VMName  string // as it was then
	Type    Type
	Message string          // in words, without the VM's name
	Data    json.RawMessage // a small object; types.go says what is in it
	At      time.Time
	Cause
}

// Cause is why something happens.
type Cause struct {
	Actor     Actor
	RequestID string // of the API; "" when no request caused it
}

// Actor is who makes something happen.
type Actor struct {
	Kind ActorKind
	ID   string // a key's; "" for others
	Name string // a key's, or a rule's
}

// ActorKind sorts actors.
type ActorKind string

// The kinds of actors.
const (
	Key    ActorKind = "key"    // somebody with an API key
	Daemon ActorKind = "hatchd" // hatchd by itself
	Guest  ActorKind = "guest"  // the VM from inside
	Rule   ActorKind = "rule"   // hatchd, because of a rule that the owner set
)

type causeKey struct{}

// WithCause returns a context that says why what is done under it is done.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// By returns a context under which things are done by an actor of a kind that
// needs no name.
func By(ctx context.Context, kind ActorKind) context.Context {
	return WithCause(ctx, Cause{Actor: Actor{Kind: kind}})
}

// CauseOf returns the context's cause; without one it is hatchd itself.
func CauseOf(ctx context.Context) Cause {
	if c, ok := ctx.Value(causeKey{}).(Cause); ok {
		return c
	}
	return Cause{Actor: Actor{Kind: Daemon}}
}

// Of returns an event about no VM yet. data becomes a JSON object; what is
// longer than an event may be is cut, or left out.
func Of(t Type, message string, data any) Event {
	e := Event{Type: t, Message: Brief(message), Data: json.RawMessage("{}")}
	if text, err := json.Marshal(data); err == nil && len(text) <= maxData && data != nil {
		e.Data = text
	}
	return e
}

// Brief cuts a text to what an event may hold of it.
func Brief(text string) string {
	return errs.Cut(text, maxMessage)
}
