// Package event is the event log: every change of a VM and every operation on
// one, with a message and who caused it.
//
// The store writes an event in the same transaction as the change that it
// describes, so neither exists without the other, and numbers events in commit
// order, so a reader that has read up to a number has missed no earlier event.
// Callers name the cause with [WithCause]; the context carries it to the store.
// Start at [Event]; types.go lists the event types, service.go reads the log, and
// prune.go limits its size.
package event

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// IDPrefix starts every event's id.
const IDPrefix = "evt_"

// Limits on one event, in bytes.
const (
	maxMessage = 1024
	maxData    = 4096
)

// Event is an entry of the event log. [Of] makes it; the store adds Seq, ID, At and,
// if Cause is zero, the cause from its context.
type Event struct {
	Seq     int64 // position in the log; later events have higher ones
	ID      string
	OwnerID string
	VMID    string // "" if the event is about no VM; the VM may have been deleted
	VMName  string // at the time of the event
	Type    Type
	Message string          // one sentence, without the VM's name
	Data    json.RawMessage // a small object; types.go lists its fields
	At      time.Time
	Cause
}

// Cause is why something happens.
type Cause struct {
	Actor     Actor
	RequestID string // of the API request; "" if no request caused it
}

// Actor is who caused an event.
type Actor struct {
	Kind ActorKind
	ID   string // of an API key or a user; "" for other kinds
	Name string // of an API key, a user or a rule; what identifies a local process
}

// ActorOf returns a caller that has authenticated with a key, or a token, as an actor.
func ActorOf(p access.Principal) Actor {
	if p.KeyID == "" { // it has a token
		return Actor{Kind: User, ID: p.OwnerID, Name: p.UserName}
	}
	return Actor{Kind: Key, ID: p.KeyID, Name: p.KeyName}
}

// ActorKind is the kind of an actor.
type ActorKind string

// The kinds of actors.
const (
	Key    ActorKind = "key"    // a client with an API key
	User   ActorKind = "user"   // a client with a token
	Local  ActorKind = "local"  // a process of the host, which needs no key
	Daemon ActorKind = "hatchd" // hatchd on its own
	Guest  ActorKind = "guest"  // the guest of the VM
	Rule   ActorKind = "rule"   // hatchd, because of a rule that the owner set
)

type causeKey struct{}

// WithCause returns a context that carries the cause of changes that are made with it.
func WithCause(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// By returns a context whose cause is an actor of a kind that has no name.
func By(ctx context.Context, kind ActorKind) context.Context {
	return WithCause(ctx, Cause{Actor: Actor{Kind: kind}})
}

// CauseOf returns the context's cause, hatchd itself if it carries none.
func CauseOf(ctx context.Context) Cause {
	if c, ok := ctx.Value(causeKey{}).(Cause); ok {
		return c
	}
	return Cause{Actor: Actor{Kind: Daemon}}
}

// Of returns an event that is not yet about a VM. data is encoded as a JSON
// object. A message that is too long is cut; data that is too long is left out.
func Of(t Type, message string, data any) Event {
	e := Event{Type: t, Message: Brief(message), Data: json.RawMessage("{}")}
	if text, err := json.Marshal(data); err == nil && len(text) <= maxData && data != nil {
		e.Data = text
	}
	return e
}

// Brief cuts a text to the length that an event may hold.
func Brief(text string) string {
	return errs.Cut(text, maxMessage)
}
