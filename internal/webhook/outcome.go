package webhook

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
)

func statusError(code int) string {
	switch {
	case code >= 300 && code <= 399:
		return fmt.Sprintf("the receiver answered %d; redirects are not followed", code)
	case code == gone:
		return "the receiver answered 410 Gone"
	}
	return fmt.Sprintf("the receiver answered %d", code)
}

// failedEvent returns the event that reports a delivery as failed for good.
func failedEvent(w Webhook, d Delivery) event.Event {
	message := fmt.Sprintf("delivery of %s to webhook %s failed after %d attempts: %s", d.EventType, w.ID, d.Attempts, d.Error)
	e := event.Of(event.WebhookFailed, message, struct {
		WebhookID  string `json:"webhook_id"`
		DeliveryID string `json:"delivery_id"`
		EventID    string `json:"event_id"`
		Attempts   int    `json:"attempts"`
		StatusCode int    `json:"status_code,omitempty"`
		Error      string `json:"error"`
	}{w.ID, d.ID, d.EventID, d.Attempts, d.StatusCode, d.Error})
	e.OwnerID = w.OwnerID
	return e
}

// disabledEvent returns the event that reports a webhook as disabled.
func disabledEvent(w Webhook, why string) event.Event {
	e := event.Of(event.WebhookDisabled, fmt.Sprintf("disabled webhook %s: %s", w.ID, why), map[string]string{"webhook_id": w.ID})
	e.OwnerID = w.OwnerID
	return e
}

// Limits and timings of pruning the delivery log.
const (
	keptEach   = 1000 // delivered or failed deliveries of one webhook
	pruneEvery = 10 * time.Minute
	pruneBatch = 500 // deliveries in one transaction
)

func (s *Service) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		removed, err := s.Store.PruneDeliveries(ctx, time.Now().Add(-s.Keep), keptEach, pruneBatch)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot prune the delivery log", logkey.Error, err)
		}
		if removed == pruneBatch && backoff.Pause(ctx, roundInterval) {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
