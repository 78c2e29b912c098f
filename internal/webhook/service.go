package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/id"
)

// Limits per owner and per webhook.
const (
	MaxWebhooks    = 50
	MaxDescription = 1024 // bytes
)

// Config has the settings and dependencies of a service. All fields but
// AllowPrivate are required.
type Config struct {
	Store        Store
	Sender       Sender
	Encode       func(event.Event) (json.RawMessage, error) // encodes an event as the API returns it
	AllowPrivate bool                                       // allow receivers in private networks, and http
	Keep         time.Duration                              // how long ended deliveries are kept
	Log          *slog.Logger
}

// Service manages webhooks and delivers events to them in the background.
type Service struct {
	Config

	stop     context.CancelFunc
	stopped  chan struct{}
	kick     chan struct{}  // wakes the dispatcher; capacity 1
	attempts sync.WaitGroup // in flight

	mu       sync.Mutex
	inFlight map[string]string // webhook ids of attempts in flight, by delivery id
}

// New makes a service and starts to deliver, until Close.
func New(cfg Config) *Service {
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{
		Config: cfg, stop: stop, stopped: make(chan struct{}),
		kick: make(chan struct{}, 1), inFlight: map[string]string{},
	}
	go s.run(ctx)
	return s
}

// Close cancels the attempts in flight, which count as not made, and waits for the
// background work to end.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

// Create creates a webhook that receives events from now on. If w has no secret,
// one is generated; the returned webhook has it. Errors: errs.Invalid, errs.Conflict.
func (s *Service) Create(ctx context.Context, owner string, w Webhook) (Webhook, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	w.ID, w.OwnerID, w.CreatedAt, w.UpdatedAt = id.New(IDPrefix), owner, now, now
	if w.Secret == "" {
		w.Secret = newSecret()
	}
	if err := s.check(w); err != nil {
		return Webhook{}, err
	}
	if err := s.Store.InsertWebhook(ctx, w, MaxWebhooks); err != nil {
		return Webhook{}, err
	}
	s.wake()
	return w, nil
}

func (s *Service) check(w Webhook) error {
	if err := checkURL(w.URL, s.AllowPrivate); err != nil {
		return err
	}
	if len(w.Events) == 0 {
		return errs.InvalidField("events", "is empty: want at least one event type, such as vm.state_changed, vm.* or *")
	}
	if len(w.Description) > MaxDescription || !utf8.ValidString(w.Description) ||
		strings.ContainsFunc(w.Description, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errs.InvalidField("description", "want up to %d bytes of printable text", MaxDescription)
	}
	return checkSecret(w.Secret)
}

// Get returns one webhook. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, scope access.Scope, id string) (Webhook, error) {
	return s.Store.Webhook(ctx, scope, id)
}

// List returns the owner's webhooks, newest first.
func (s *Service) List(ctx context.Context, scope access.Scope) ([]Webhook, error) {
	return s.Store.Webhooks(ctx, scope)
}

// Update changes a webhook, unless change returns an error for it. If it becomes
// enabled again, it receives the events from then on, and its pending deliveries are
// attempted again.
func (s *Service) Update(ctx context.Context, scope access.Scope, id string, change func(Webhook) (Change, error)) (Webhook, error) {
	changed, err := s.Store.UpdateWebhook(ctx, scope, id, func(w *Webhook) error {
		c, err := change(*w)
		if err != nil {
			return err
		}
		c.apply(w)
		return s.check(*w)
	})
	if err == nil {
		s.wake()
	}
	return changed, err
}

func (c Change) apply(w *Webhook) {
	set(&w.URL, c.URL)
	set(&w.Secret, c.Secret)
	set(&w.Description, c.Description)
	set(&w.Enabled, c.Enabled)
	if c.Events != nil {
		w.Events = c.Events
	}
	if c.Enabled != nil {
		w.DisabledReason = ""
	}
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

// Delete removes a webhook and its deliveries, unless check returns an error for it.
func (s *Service) Delete(ctx context.Context, scope access.Scope, id string, check func(Webhook) error) error {
	return s.Store.DeleteWebhook(ctx, scope, id, check)
}

// Deliveries returns a page of the delivery log, newest first.
func (s *Service) Deliveries(ctx context.Context, scope access.Scope, id string, f Filter) (page []Delivery, next string, err error) {
	if _, err := s.Store.Webhook(ctx, scope, id); err != nil {
		return nil, "", err
	}
	return s.Store.Deliveries(ctx, id, f)
}

// Test queues a test event for the webhook and returns its delivery without
// waiting for it. Errors: errs.Conflict with code webhook_disabled; errs.TooMany.
func (s *Service) Test(ctx context.Context, scope access.Scope, webhookID string) (Delivery, error) {
	w, err := s.enabled(ctx, scope, webhookID)
	if err != nil {
		return Delivery{}, err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	e := event.Of(event.WebhookTest, "a test of the webhook", map[string]string{"webhook_id": w.ID})
	e.ID, e.OwnerID, e.At, e.Cause = id.New(event.IDPrefix), w.OwnerID, now, event.CauseOf(ctx)
	d, err := s.delivery(w, e, now)
	if err != nil {
		return Delivery{}, err
	}
	if err := s.Store.InsertDelivery(ctx, d, maxPending); err != nil {
		return Delivery{}, err
	}
	s.wake()
	return d, nil
}

// Retry queues a delivery again in any state.
// Errors: errs.NotFound; errs.Conflict with code webhook_disabled.
func (s *Service) Retry(ctx context.Context, scope access.Scope, webhookID, deliveryID string) (Delivery, error) {
	if _, err := s.enabled(ctx, scope, webhookID); err != nil {
		return Delivery{}, err
	}
	d, err := s.Store.RetryDelivery(ctx, webhookID, deliveryID, time.Now())
	if err == nil {
		s.wake()
	}
	return d, err
}

func (s *Service) enabled(ctx context.Context, scope access.Scope, id string) (Webhook, error) {
	w, err := s.Store.Webhook(ctx, scope, id)
	if err == nil && !w.Enabled {
		err = errs.New(errs.Conflict, "webhook_disabled", "cannot deliver to webhook %s: it is disabled", id).WithHint("enable it first")
	}
	return w, err
}

// delivery returns a new delivery of e to w.
func (s *Service) delivery(w Webhook, e event.Event, now time.Time) (Delivery, error) {
	data, err := s.Encode(e)
	if err != nil {
		return Delivery{}, fmt.Errorf("cannot encode an event: %w", err)
	}
	body, err := json.Marshal(struct {
		Type      event.Type      `json:"type"`
		Timestamp string          `json:"timestamp"` // of the same width as those of the event
		Data      json.RawMessage `json:"data"`
	}{e.Type, e.At.UTC().Format("2006-01-02T15:04:05.000Z"), data})
	if err != nil {
		return Delivery{}, fmt.Errorf("cannot encode an event: %w", err)
	}
	return Delivery{
		ID: id.New(DeliveryIDPrefix), WebhookID: w.ID, EventID: e.ID, EventSeq: e.Seq, EventType: e.Type,
		Body: body, State: Pending, NextTryAt: &now, CreatedAt: now,
	}, nil
}

// wake makes the dispatcher start a round.
func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default: // a wake is already queued
	}
}
