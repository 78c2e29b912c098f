package webhook

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/event"
)

func statusError(code int) string {
	switch {
	case code >= 300 && code <= 399:
		return fmt.Sprintf("the receiver answered %d; redirects are not followed", code)
	case code == gone:
		return "the receiver answered 410: it wants no more"
	}
	return fmt.Sprintf("the receiver answered %d", code)
}

// failedEvent tells that a delivery was given up.
func failedEvent(w Webhook, d Delivery) event.Event {
	message := fmt.Sprintf("gave up telling webhook %s of %s after %d tries: %s", w.ID, d.EventType, d.Attempts, d.Error)
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

// disabledEvent tells that a webhook is told of nothing any more.
func disabledEvent(w Webhook, why string) event.Event {
	e := event.Of(event.WebhookDisabled, fmt.Sprintf("disabled webhook %s: %s", w.ID, why), map[string]string{"webhook_id": w.ID})
	e.OwnerID = w.OwnerID
	return e
}

// How the log of deliveries is kept small.
const (
	keptEach   = 1000 // deliveries of one webhook that have ended
	pruneEvery = 10 * time.Minute
	pruneBatch = 500
)

func (s *Service) pruneLoop(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		removed, err := s.Store.PruneDeliveries(ctx, time.Now().Add(-s.Keep), keptEach, pruneBatch)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot prune the log of deliveries", "err", err)
		}
		if removed == pruneBatch && pause(ctx, roundPause) {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
