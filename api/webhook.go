package api

import "time"

// CreateWebhook is the body of POST /webhooks.
type CreateWebhook struct {
	URL         string   `json:"url" minLength:"1" maxLength:"2048" doc:"Where to post to, with https://." example:"https://example.com/hook"`
	Events      []string `json:"events" minItems:"1" maxItems:"32" nullable:"false" doc:"Which types of events: one, as vm.state_changed, all that begin so, as vm.*, or *." example:"[\"vm.*\"]"`
	Secret      string   `json:"secret,omitempty" maxLength:"128" doc:"What to sign with: whsec_ and 24 to 64 bytes in base64. Made when absent."`
	Description string   `json:"description,omitempty" maxLength:"1024"`
	Enabled     *bool    `json:"enabled,omitempty" doc:"Defaults to true."`
}

// UpdateWebhook is the body of PATCH /webhooks/{id}. What is absent stays.
type UpdateWebhook struct {
	URL         *string  `json:"url,omitempty" minLength:"1" maxLength:"2048"`
	Events      []string `json:"events,omitempty" minItems:"1" maxItems:"32" nullable:"false"`
	Secret      *string  `json:"secret,omitempty" maxLength:"128"`
	Description *string  `json:"description,omitempty" maxLength:"1024"`
	Enabled     *bool    `json:"enabled,omitempty" doc:"A webhook that is enabled again is told of what comes from then on."`
}

// Webhook is a server that is told of events. The secret is shown once, in the
// answer to POST /webhooks.
type Webhook struct {
	ID             string    `json:"id" example:"whk_abc123def456"`
	URL            string    `json:"url"`
	Events         []string  `json:"events" nullable:"false"`
	Secret         string    `json:"secret,omitempty" doc:"Only in the answer to POST /webhooks."`
	Description    string    `json:"description,omitempty"`
	Enabled        bool      `json:"enabled"`
	DisabledReason string    `json:"disabled_reason,omitempty" doc:"Why it was disabled, when it was not its owner who did it."`
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// States of a delivery.
const (
	DeliveryPending   = "pending"
	DeliveryDelivered = "delivered"
	DeliveryFailed    = "failed"
)

// Delivery is one event on its way to one webhook.
type Delivery struct {
	ID         string     `json:"id" example:"dlv_abc123def456"`
	WebhookID  string     `json:"webhook_id"`
	EventID    string     `json:"event_id" doc:"Sent as webhook-id."`
	EventSeq   int64      `json:"event_seq,omitempty" doc:"The event's place in the log; absent for a test."`
	EventType  string     `json:"event_type"`
	State      string     `json:"state" enum:"pending,delivered,failed" doc:"To be tried, taken by the receiver, or given up."`
	Attempts   int        `json:"attempts" doc:"How often it was tried."`
	StatusCode int        `json:"status_code,omitempty" doc:"Of the last answer, if there was one."`
	Error      string     `json:"error,omitempty" doc:"Why the last attempt failed, in words."`
	NextTryAt  *time.Time `json:"next_try_at,omitempty" doc:"When it is tried next."`
	TriedAt    *time.Time `json:"tried_at,omitempty" doc:"When the last attempt ended."`
	CreatedAt  time.Time  `json:"created_at"`
}
