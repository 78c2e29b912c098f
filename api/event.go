package api

import "time"

// Event is one thing that has happened.
type Event struct {
	Seq       int64          `json:"seq" doc:"Place in the log; later events have higher ones. Give it as after, or as Last-Event-ID, to read on."`
	ID        string         `json:"id" example:"evt_abc123def456"`
	Type      string         `json:"type" doc:"What has happened." example:"vm.state_changed"`
	VMID      string         `json:"vm_id,omitempty" doc:"The VM that it is about, which may be gone."`
	VMName    string         `json:"vm_name,omitempty" doc:"The VM's name at that time."`
	Message   string         `json:"message" doc:"What has happened, in words."`
	Actor     Actor          `json:"actor" doc:"Who caused it."`
	RequestID string         `json:"request_id,omitempty" doc:"The request that caused it."`
	Data      map[string]any `json:"data,omitempty" doc:"More, by type."`
	At        time.Time      `json:"at" doc:"When, RFC 3339, UTC."`
}

// Kinds of actors.
const (
	ActorKey    = "key"
	ActorHatchd = "hatchd"
	ActorGuest  = "guest"
	ActorRule   = "rule"
)

// Actor is who caused something.
type Actor struct {
	Kind string `json:"kind" enum:"key,hatchd,guest,rule" doc:"Somebody with an API key, hatchd by itself, the guest, or a rule that the owner set."`
	ID   string `json:"id,omitempty" doc:"The key's ID."`
	Name string `json:"name,omitempty" doc:"The key's or the rule's name."`
}
