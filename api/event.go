package api

// Event is an entry of the event log.
type Event struct {
	Seq       int64          `json:"seq" doc:"Position in the log, which increases. Pass it as after, or as Last-Event-ID, to get the later events."`
	ID        string         `json:"id" example:"evt_abc123def456"`
	Type      string         `json:"type" doc:"Type of the event." example:"vm.state_changed"`
	VMID      string         `json:"vm_id,omitempty" doc:"The VM that the event is about. It may be deleted since."`
	VMName    string         `json:"vm_name,omitempty" doc:"The VM's name at the time."`
	Message   string         `json:"message" doc:"What happened, as text for people."`
	Actor     Actor          `json:"actor" doc:"Who caused it."`
	RequestID string         `json:"request_id,omitempty" doc:"ID of the request that caused it."`
	Data      map[string]any `json:"data,omitempty" doc:"Further fields, which depend on the type."`
	At        Time           `json:"at" doc:"Time of the event, RFC 3339, UTC."`
}

// EventGap is the type of an event that comes first if events were removed that a
// reader, by its position or its time, would have got.
const EventGap = "log.gap"

// Kinds of actors.
const (
	ActorKey    = "key"
	ActorUser   = "user"
	ActorLocal  = "local"
	ActorHatchd = "hatchd"
	ActorGuest  = "guest"
	ActorRule   = "rule"
)

// Actor is the cause of an event.
type Actor struct {
	Kind string `json:"kind" enum:"key,user,local,hatchd,guest,rule" doc:"A caller with an API key, a user with a token, a process of the host that needs none, hatchd itself, the guest, or a rule of the owner."`
	ID   string `json:"id,omitempty" doc:"The ID of the key or the user."`
	Name string `json:"name,omitempty" doc:"The name of the key, the user or the rule; the user of a local process, such as local:uid 0."`
}
