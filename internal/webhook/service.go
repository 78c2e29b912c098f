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

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/id"
)

// Bounds on what an owner may have.
const (
	MaxWebhooks    = 50
	MaxDescription = 1024 // bytes
)

// Config is what a service needs. All fields are required but AllowPrivate.
type Config struct {
	Store        Store
	Sender       Sender
	Encode       func(event.Event) (json.RawMessage, error) // the form in which the API shows events
	AllowPrivate bool                                       // receivers in private networks, and http
	Keep         time.Duration                              // of deliveries that have ended
	Log          *slog.Logger
}

// Service manages webhooks and, in the background, delivers to them.
type Service struct {
	Config

	stop    context.CancelFunc
	stopped chan struct{}
	kick    chan struct{}  // there may be something to do; capacity 1
	tries   sync.WaitGroup // attempts under way

	mu     sync.Mutex
	flying map[string]string // webhook ids of attempts under way, by delivery id
}

// New makes a service and starts to deliver, until Close.
func New(cfg Config) *Service {
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{
		Config: cfg, stop: stop, stopped: make(chan struct{}),
		kick: make(chan struct{}, 1), flying: map[string]string{},
	}
	go s.run(ctx)
	return s
}

// Close ends the attempts under way, which count as not made, and the rest of
// the work in the background.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

// Create makes a webhook that is told of what comes. Without a secret one is
// made; the returned webhook has it. Errors: errs.Invalid, errs.Conflict.
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
		return errs.InvalidField("events", "at least one type of event is needed, such as vm.state_changed, vm.* or *")
	}
	if len(w.Description) > MaxDescription || !utf8.ValidString(w.Description) ||
		strings.ContainsFunc(w.Description, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errs.InvalidField("description", "up to %d bytes of printable text can be given", MaxDescription)
	}
	return checkSecret(w.Secret)
}

// Get returns one webhook. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, owner, id string) (Webhook, error) {
	return s.Store.Webhook(ctx, owner, id)
}

// List returns the owner's webhooks, newest first.
func (s *Service) List(ctx context.Context, owner string) ([]Webhook, error) {
	return s.Store.Webhooks(ctx, owner)
}

// Update changes a webhook. One that is enabled again is told of what comes
// from then on, and its pending deliveries go on.
func (s *Service) Update(ctx context.Context, owner, id string, c Change) (Webhook, error) {
	now, err := s.Store.Webhook(ctx, owner, id)
	if err != nil {
		return Webhook{}, err
	}
	c.apply(&now)
	if err := s.check(now); err != nil {
		return Webhook{}, err
	}
	changed, err := s.Store.UpdateWebhook(ctx, owner, id, c.apply)
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

// Delete removes a webhook and its deliveries.
func (s *Service) Delete(ctx context.Context, owner, id string) error {
	return s.Store.DeleteWebhook(ctx, owner, id)
}

// Deliveries returns a page of the log of deliveries, newest first.
func (s *Service) Deliveries(ctx context.Context, owner, id string, f Filter) (page []Delivery, next string, err error) {
	if _, err := s.Store.Webhook(ctx, owner, id); err != nil {
		return nil, "", err
	}
	return s.Store.Deliveries(ctx, id, f)
}

// Test sends the webhook an event that means nothing, and returns its delivery
// at once. Errors: errs.Conflict with code webhook_disabled; errs.TooMany.
func (s *Service) Test(ctx context.Context, owner, webhookID string) (Delivery, error) {
	w, err := s.enabled(ctx, owner, webhookID)
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

// Retry delivers anew, whatever has become of the delivery before.
// Errors: errs.NotFound; errs.Conflict with code webhook_disabled.
func (s *Service) Retry(ctx context.Context, owner, webhookID, deliveryID string) (Delivery, error) {
	if _, err := s.enabled(ctx, owner, webhookID); err != nil {
		return Delivery{}, err
	}
	d, err := s.Store.RetryDelivery(ctx, webhookID, deliveryID, time.Now())
	if err == nil {
		s.wake()
	}
	return d, err
}

func (s *Service) enabled(ctx context.Context, owner, id string) (Webhook, error) {
	w, err := s.Store.Webhook(ctx, owner, id)
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
		Timestamp time.Time       `json:"timestamp"`
		Data      json.RawMessage `json:"data"`
	}{e.Type, e.At.UTC(), data})
	if err != nil {
		return Delivery{}, fmt.Errorf("cannot encode an event: %w", err)
	}
	return Delivery{
		ID: id.New(DeliveryIDPrefix), WebhookID: w.ID, EventID: e.ID, EventSeq: e.Seq, EventType: e.Type,
		Body: body, State: Pending, NextTryAt: &now, CreatedAt: now,
	}, nil
}

// wake lets the dispatcher look for something to do.
func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default: // it will look anyway
	}
}
