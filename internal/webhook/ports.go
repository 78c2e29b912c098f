package webhook

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/event"
)

// Store stores webhooks and deliveries. A method that takes a scope sees only the
// webhooks in that scope.
type Store interface {
	// InsertWebhook stores a webhook whose cursor is the end of the event log.
	// Errors: errs.Conflict with code too_many_webhooks if the owner already has
	// most webhooks.
	InsertWebhook(ctx context.Context, w Webhook, most int) error

	// Webhook returns one webhook. Errors: errs.NotFound with code webhook_not_found.
	Webhook(ctx context.Context, scope access.Scope, id string) (Webhook, error)

	// Webhooks returns the webhooks in scope without their secrets, newest first.
	Webhooks(ctx context.Context, scope access.Scope) ([]Webhook, error)

	// UpdateWebhook applies change in one transaction and stores URL, Events,
	// Secret, Description, Enabled and DisabledReason, unless change returns an error. If the
	// webhook becomes enabled, its cursor moves to the end of the event log. Errors:
	// errs.NotFound; change's.
	UpdateWebhook(ctx context.Context, scope access.Scope, id string, change func(*Webhook) error) (Webhook, error)

	// DeleteWebhook removes a webhook and its deliveries, unless check returns an error
	// for it. Errors: errs.NotFound; check's.
	DeleteWebhook(ctx context.Context, scope access.Scope, id string, check func(Webhook) error) error

	// Deliveries returns one page of deliveries, newest first and without bodies,
	// and the cursor of the next page, "" if there is none. Errors: errs.Invalid with code invalid_after.
	Deliveries(ctx context.Context, webhookID string, f Filter) (page []Delivery, next string, err error)

	// InsertDelivery stores a delivery of an event that is not in the event log.
	// Errors: errs.TooMany with code too_many_pending if the webhook already has
	// most pending deliveries.
	InsertDelivery(ctx context.Context, d Delivery, most int) error

	// RetryDelivery makes a delivery pending, with no attempts made, due at the given time.
	// Errors: errs.NotFound with code delivery_not_found.
	RetryDelivery(ctx context.Context, webhookID, id string, at time.Time) (Delivery, error)

	Queue
}

// Filter narrows a list of deliveries. Zero fields do not narrow.
type Filter struct {
	ID    string // of one delivery
	State State
	Limit int
	After string // cursor that Deliveries returned with the previous page
}

// Queue is the part of the store that the dispatcher uses.
type Queue interface {
	Events(ctx context.Context, f event.Filter) (page []event.Event, through int64, err error)
	EventAdded() <-chan struct{}

	// Subscriptions returns the enabled webhooks of every owner.
	Subscriptions(ctx context.Context) ([]Subscription, error)

	// Enqueue stores deliveries and moves the webhooks' cursors, in one
	// transaction. It skips moves of webhooks that are disabled, or whose cursor
	// is not at From any more.
	Enqueue(ctx context.Context, moves []Move) error

	// Due returns a webhook's pending deliveries, ordered by when they are due.
	Due(ctx context.Context, webhookID string, limit int) ([]Delivery, error)

	// RecordOutcome stores the outcome of an attempt, in one transaction. It
	// stores nothing if the delivery has ended or been retried meanwhile, or if
	// the outcome disables the webhook and its URL has changed.
	RecordOutcome(ctx context.Context, o Outcome) (stored bool, err error)

	// PruneDeliveries removes up to batch deliveries that are not pending: those
	// older than before, and the oldest of a webhook that has more than most.
	PruneDeliveries(ctx context.Context, before time.Time, most, batch int) (removed int, err error)
}

// Subscription is an enabled webhook with its number of pending deliveries.
type Subscription struct {
	Webhook
	Pending int
}

// Move moves the cursor of a webhook in the event log.
type Move struct {
	WebhookID     string
	From, Through int64
	Deliveries    []Delivery // of the events after From, up to Through
}

// Outcome is the result of one attempt.
type Outcome struct {
	Was, Now Delivery      // before the attempt, and after it
	URL      string        // to which the request was sent
	Disable  string        // why the webhook becomes disabled; "" if it stays enabled
	Events   []event.Event // to append to the event log
}

// Message is one request to a webhook's receiver.
type Message struct {
	URL       string
	ID        string // webhook-id
	Timestamp time.Time
	Signature string
	Body      []byte
}

// Answer is a receiver's response.
type Answer struct {
	StatusCode int
	RetryAfter time.Duration // from its Retry-After header; 0 if there is none
}

// Sender posts messages.
type Sender interface {
	// Send returns the receiver's answer, with any status. The error's text
	// can be shown to the owner.
	Send(ctx context.Context, m Message) (Answer, error)
}
