// Package webhook tells servers of the owner's choice what has happened, as
// the Standard Webhooks specification has it.
//
// Each webhook has a place in the log of events. From there a delivery is
// stored for every event that it asks for, before anything is sent; it is
// tried until the receiver takes it, with growing pauses, and given up after
// the last. So each event is delivered at least once, also when hatchd is
// killed in between; the order is mostly that of the events.
//
// It does not speak HTTP: webhook/sender does. Start at [Service]; dispatch.go
// is what goes on in the background, public.go who may be spoken to.
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

// Webhook is a server that wants to know.
type Webhook struct {
	ID, OwnerID    string
	URL            string
	Events         []event.Pattern // which it is told of
	Secret         string          // to sign with; see sign.go
	Description    string
	Enabled        bool
	DisabledReason string // when it was not the owner who disabled it
	Cursor         int64  // Seq up to which deliveries have been stored
	CreatedAt      time.Time
	UpdatedAt      time.Time
}

// wants reports whether the webhook is to be told of e. What has become of
// deliveries is told to nobody this way: two broken webhooks would go on about
// each other for ever.
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

// State is how a delivery stands.
type State string

// The states of deliveries.
const (
	Pending   State = "pending"   // to be tried, for the first time or again
	Delivered State = "delivered" // the receiver has taken it
	Failed    State = "failed"    // given up
)

// Delivery is one event on its way to one webhook.
type Delivery struct {
	ID, WebhookID string
	EventID       string // the same for every webhook that is told of the event
	EventSeq      int64  // 0 when the event is in no log
	EventType     event.Type
	Body          []byte // what is sent, and signed

	State      State
	Attempts   int
	StatusCode int        // of the last answer; 0 when there was none
	Error      string     // why the last attempt failed, in words
	NextTryAt  *time.Time // nil when there is none to come
	TriedAt    *time.Time // when the last attempt ended
	CreatedAt  time.Time
}

// Change is what of a webhook shall be another. Nil fields stay.
type Change struct {
	URL         *string
	Events      []event.Pattern
	Secret      *string
	Description *string
	Enabled     *bool
}
