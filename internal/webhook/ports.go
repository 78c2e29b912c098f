package webhook

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/event"
)

// Store keeps webhooks and deliveries. Methods that take an owner see that
// owner's webhooks only.
type Store interface {
	// InsertWebhook makes a webhook whose place is the end of the log, unless
	// the owner has most already. Errors: errs.Conflict with code too_many_webhooks.
	InsertWebhook(ctx context.Context, w Webhook, most int) error

	// Webhook returns one. Errors: errs.NotFound with code webhook_not_found.
	Webhook(ctx context.Context, owner, id string) (Webhook, error)

	// Webhooks returns the owner's, newest first.
	Webhooks(ctx context.Context, owner string) ([]Webhook, error)

	// UpdateWebhook applies change in one transaction and stores URL, Events,
	// Secret, Description, Enabled and DisabledReason. The place of one that
	// becomes enabled is the end of the log. Errors: errs.NotFound.
	UpdateWebhook(ctx context.Context, owner, id string, change func(*Webhook)) (Webhook, error)

	// DeleteWebhook removes a webhook and its deliveries. Errors: errs.NotFound.
	DeleteWebhook(ctx context.Context, owner, id string) error

	// Deliveries returns one page, newest first and without their bodies, and
	// the cursor of the next page or "". Errors: errs.Invalid with code invalid_after.
	Deliveries(ctx context.Context, webhookID string, f Filter) (page []Delivery, next string, err error)

	// InsertDelivery stores a delivery that is in no log, unless so many wait
	// already. Errors: errs.TooMany with code too_many_pending.
	InsertDelivery(ctx context.Context, d Delivery, most int) error

	// RetryDelivery makes a delivery pending as if it had never been tried.
	// Errors: errs.NotFound with code delivery_not_found.
	RetryDelivery(ctx context.Context, webhookID, id string, at time.Time) (Delivery, error)

	Queue
}

// Filter narrows a list of deliveries. Zero fields do not narrow.
type Filter struct {
	State State
	Limit int
	After string // cursor, as Deliveries returned it with the page before
}

// Queue is what the dispatcher needs.
type Queue interface {
	Events(ctx context.Context, f event.Filter) (page []event.Event, through int64, err error)
	EventAdded() <-chan struct{}

	// Subscriptions returns the enabled webhooks of every owner.
	Subscriptions(ctx context.Context) ([]Subscription, error)

	// Enqueue stores deliveries and moves the webhooks' places, in one
	// transaction. What belongs to a webhook that is not at From any more, or is
	// not enabled, is left out.
	Enqueue(ctx context.Context, moves []Move) error

	// Due returns a webhook's pending deliveries, the next to be tried first.
	Due(ctx context.Context, webhookID string, limit int) ([]Delivery, error)

	// Settle stores the outcome of an attempt, all in one transaction, unless it
	// was overtaken: by the delivery's end, by a retry, or, where it shall disable
	// the webhook, by another address.
	Settle(ctx context.Context, o Outcome) (stored bool, err error)

	// PruneDeliveries removes up to batch deliveries that are not pending:
	// those older than before, and the oldest of more than most of one webhook.
	PruneDeliveries(ctx context.Context, before time.Time, most, batch int) (removed int, err error)
}

// Subscription is an enabled webhook with its number of pending deliveries.
type Subscription struct {
	Webhook
	Pending int
}

// Move takes a webhook from one place in the log to another.
type Move struct {
	WebhookID     string
	From, Through int64
	Deliveries    []Delivery // for the events between
}

// Outcome is what came of an attempt.
type Outcome struct {
	Was, Now Delivery      // before the attempt, and after it
	URL      string        // that was asked
	Disable  string        // why the webhook shall be told of nothing any more; "" to go on
	Events   []event.Event // that tell of it
}

// Message is one request to a webhook's receiver.
type Message struct {
	URL       string
	ID        string // webhook-id
	Timestamp time.Time
	Signature string
	Body      []byte
}

// Answer is what a receiver said.
type Answer struct {
	StatusCode int
	RetryAfter time.Duration // as it asks for; 0 when it does not
}

// Sender posts messages.
type Sender interface {
	// Send returns the receiver's answer, whatever its status. The error's text
	// can be shown to the owner.
	Send(ctx context.Context, m Message) (Answer, error)
}
