// Package webhook delivers events to URLs that owners register, following the
// Standard Webhooks specification.
//
// Each webhook has a cursor in the event log. For every later event that matches
// its patterns a delivery is stored before anything is sent. The delivery is
// attempted, with a growing backoff, until the receiver accepts it or the last
// attempt fails. So each event is sent at least once, even if hatchd is killed in
// between; the order is mostly that of the events.
//
// HTTP itself is in webhook/sender. Start at [Service]; dispatch.go is the
// background loop, public.go decides which addresses are allowed.
package webhook

import (
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/event"
)

// Prefixes of ids.
const (
	IDPrefix         = "whk_"
	DeliveryIDPrefix = "dlv_"
)

// Webhook is a URL that events of its owner are posted to.
type Webhook struct {
	ID, OwnerID    string
	URL            string
	Events         []event.Pattern // which events it receives
	Secret         string          // signing key; see sign.go
	Description    string
	Enabled        bool
	DisabledReason string // "" unless hatchd disabled it
	Cursor         int64  // Seq of the last event for which deliveries were stored
	CreatedAt      time.Time
	UpdatedAt      time.Time
}

// wants reports whether e is delivered to the webhook. Events about webhooks never
// are: two broken webhooks would report each other's failures forever.
func (w Webhook) wants(e event.Event) bool {
	if e.OwnerID != w.OwnerID || e.Seq <= w.Cursor || strings.HasPrefix(string(e.Type), "webhook.") {
		return false
	}
	for _, p := range w.Events {
		if p.Matches(e.Type) {
			return true
		}
	}
	return false
}

// State is the state of a delivery.
type State string

// The states of deliveries.
const (
	Pending   State = "pending"   // a first or a further attempt is due
	Delivered State = "delivered" // the receiver answered 2xx
	Failed    State = "failed"    // the last attempt failed
)

// Delivery is the sending of one event to one webhook, with all its attempts.
type Delivery struct {
	ID, WebhookID string
	EventID       string // the same for every webhook that receives the event
	EventSeq      int64  // 0 if the event is not in the event log
	EventType     event.Type
	Body          []byte // of the request, which is signed

	State      State
	Attempts   int
	StatusCode int        // of the last response; 0 if there was none
	Error      string     // why the last attempt failed
	NextTryAt  *time.Time // nil if no attempt is due
	TriedAt    *time.Time // when the last attempt ended
	CreatedAt  time.Time
}

// Change is an update of a webhook. Nil fields stay unchanged.
type Change struct {
	URL         *string
	Events      []event.Pattern
	Secret      *string
	Description *string
	Enabled     *bool
}
