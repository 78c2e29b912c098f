package store

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/webhook"
)

func newHook(id string) webhook.Webhook {
	return webhook.Webhook{
		ID: id, OwnerID: "acc_a", URL: "https://example.com", Events: []event.Pattern{"vm.*", "*"}, Secret: "whsec_x",
		Description: "d", Enabled: true, CreatedAt: now(), UpdatedAt: now(),
	}
}

func insertHook(t testing.TB, s *Store, w webhook.Webhook) webhook.Webhook {
	t.Helper()
	noError(t, s.InsertWebhook(t.Context(), w, 10))
	return w
}

func happen(t testing.TB, s *Store, n int) {
	t.Helper()
	for range n {
		e := event.Of(event.VMCreated, "m", nil)
		e.OwnerID = "acc_a"
		noError(t, s.AppendEvents(t.Context(), e))
	}
}

func newDelivery(hook, id string, seq int64) webhook.Delivery {
	at := now()
	return webhook.Delivery{
		ID: id, WebhookID: hook, EventID: "evt_" + id, EventSeq: seq, EventType: event.VMCreated,
		Body: []byte(`{"a":1}`), State: webhook.Pending, NextTryAt: &at, CreatedAt: at,
	}
}

func TestWebhooks(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		happen(t, s, 3)
		want := insertHook(t, s, newHook("whk_a"))
		want.Cursor = 3
		got, err := s.Webhook(ctx, access.Owner("acc_a"), "whk_a")
		noError(t, err)
		equal(t, got, want)
		for _, id := range []string{"whk_none", "\x00", ""} {
			_, err = s.Webhook(ctx, access.Owner("acc_a"), id)
			hasCode(t, err, errs.NotFound, "webhook_not_found")
			hasCode(t, s.DeleteWebhook(ctx, access.Owner("acc_a"), id, func(webhook.Webhook) error { return nil }), errs.NotFound, "webhook_not_found")
		}
		_, err = s.Webhook(ctx, access.Owner("acc_b"), "whk_a")
		hasCode(t, err, errs.NotFound, "webhook_not_found")
		_, err = s.UpdateWebhook(ctx, access.Owner("acc_b"), "whk_a", func(*webhook.Webhook) error { return nil })
		hasCode(t, err, errs.NotFound, "webhook_not_found")
		hasCode(t, s.DeleteWebhook(ctx, access.Owner("acc_b"), "whk_a", func(webhook.Webhook) error { return nil }), errs.NotFound, "webhook_not_found")

		happen(t, s, 2)
		changed, err := s.UpdateWebhook(ctx, access.Owner("acc_a"), "whk_a", func(w *webhook.Webhook) error {
			w.URL, w.Events, w.Secret, w.Description, w.Enabled, w.DisabledReason = "https://b", []event.Pattern{"*"}, "whsec_y", "e", false, "f"
			return nil
		})
		noError(t, err)
		if changed.URL != "https://b" || len(changed.Events) != 1 || changed.Secret != "whsec_y" || changed.Enabled || changed.DisabledReason != "f" || changed.Cursor != 3 || !changed.UpdatedAt.After(want.UpdatedAt) {
			t.Errorf("%+v", changed)
		}
		changed, err = s.UpdateWebhook(ctx, access.Owner("acc_a"), "whk_a", func(w *webhook.Webhook) error { w.Enabled = true; return nil })
		noError(t, err)
		equal(t, changed.Cursor, int64(5)) // events added meanwhile are skipped
		second := newHook("whk_b")
		second.CreatedAt = second.CreatedAt.Add(time.Second)
		insertHook(t, s, second)
		list, err := s.Webhooks(ctx, access.Owner("acc_a"))
		noError(t, err)
		if len(list) != 2 || list[0].ID != "whk_b" {
			t.Errorf("%+v", list)
		}
		noError(t, s.InsertDelivery(ctx, newDelivery("whk_a", "dlv_a", 1), 100))
		noError(t, s.DeleteWebhook(ctx, access.Owner("acc_a"), "whk_a", func(webhook.Webhook) error { return nil }))
		equal(t, count(t, s, "webhook_deliveries"), 0)
		hasCode(t, s.InsertDelivery(ctx, newDelivery("whk_a", "dlv_b", 1), 100), errs.NotFound, "webhook_not_found")
	})
}

func TestWebhooksAreCounted(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		var g errgroup.Group
		for i := range 10 {
			g.Go(func() error {
				err := s.InsertWebhook(t.Context(), newHook(fmt.Sprintf("whk_%d", i)), 4)
				if errs.HasCode(err, "too_many_webhooks") {
					return nil
				}
				return err
			})
		}
		noError(t, g.Wait())
		equal(t, count(t, s, "webhooks"), 4)
	})
}

// Deliveries and the webhook's cursor are stored together, once.
func TestEnqueue(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for _, id := range []string{"whk_a", "whk_b"} {
			insertHook(t, s, newHook(id))
		}
		move := func(hook string, from, through int64, ds ...webhook.Delivery) error {
			return s.Enqueue(ctx, []webhook.Move{{WebhookID: hook, From: from, Through: through, Deliveries: ds}})
		}
		want := newDelivery("whk_a", "dlv_a", 1)
		noError(t, move("whk_a", 0, 5, want, newDelivery("whk_a", "dlv_b", 2)))
		noError(t, move("whk_a", 0, 5, newDelivery("whk_a", "dlv_c", 1))) // another process did so first
		noError(t, move("whk_none", 0, 5, newDelivery("whk_none", "dlv_d", 1)))
		equal(t, count(t, s, "webhook_deliveries"), 2)
		due, err := s.Due(ctx, "whk_a", 10)
		noError(t, err)
		equal(t, len(due), 2)
		equal(t, due[0], want)

		// A delivery that exists already rolls the whole move back.
		if err := move("whk_a", 5, 9, newDelivery("whk_a", "dlv_e", 6), newDelivery("whk_a", "dlv_a", 7)); err == nil {
			t.Error("a delivery was stored twice")
		}
		got, err := s.Webhook(ctx, access.Owner("acc_a"), "whk_a")
		noError(t, err)
		equal(t, got.Cursor, int64(5))
		equal(t, count(t, s, "webhook_deliveries"), 2)

		_, err = s.UpdateWebhook(ctx, access.Owner("acc_a"), "whk_b", func(w *webhook.Webhook) error { w.Enabled = false; return nil })
		noError(t, err)
		noError(t, move("whk_b", 0, 5, newDelivery("whk_b", "dlv_f", 1)))
		equal(t, count(t, s, "webhook_deliveries"), 2)
		subscriptions, err := s.Subscriptions(ctx)
		noError(t, err)
		if len(subscriptions) != 1 || subscriptions[0].ID != "whk_a" || subscriptions[0].Pending != 2 || subscriptions[0].Cursor != 5 {
			t.Errorf("%+v", subscriptions)
		}
	})
}

func TestRecordOutcome(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		insertHook(t, s, newHook("whk_a"))
		for i := range 3 {
			noError(t, s.InsertDelivery(ctx, newDelivery("whk_a", fmt.Sprintf("dlv_%d", i), int64(i)), 100))
		}
		due, err := s.Due(ctx, "whk_a", 2)
		noError(t, err)
		equal(t, len(due), 2)
		first, tried, next := due[0], now(), now().Add(time.Hour)
		first.Attempts, first.StatusCode, first.Error, first.TriedAt, first.NextTryAt = 1, 500, "no \x00", &tried, &next
		record := func(o webhook.Outcome, want bool) {
			t.Helper()
			stored, err := s.RecordOutcome(ctx, o)
			noError(t, err)
			equal(t, stored, want)
		}
		record(webhook.Outcome{Was: due[0], Now: first}, true)
		record(webhook.Outcome{Was: due[0], Now: first}, false) // another process did so first
		due, err = s.Due(ctx, "whk_a", 10)
		noError(t, err)
		first.Error = "no \uFFFD"
		equal(t, due[2], first) // now the last that is due

		disabled := event.Of(event.WebhookDisabled, "m", nil)
		disabled.OwnerID = "acc_a"
		was := first
		first.State, first.NextTryAt = webhook.Failed, nil
		outcome := webhook.Outcome{Was: was, Now: first, URL: "https://elsewhere", Disable: "gone", Events: []event.Event{disabled}}
		record(outcome, false) // another URL has answered 410
		due, err = s.Due(ctx, "whk_a", 10)
		noError(t, err)
		if len(due) != 3 || count(t, s, "events") != 0 {
			t.Errorf("%+v, %d events", due, count(t, s, "events"))
		}
		outcome.URL = "https://example.com"
		record(outcome, true)
		w, err := s.Webhook(ctx, access.Owner("acc_a"), "whk_a")
		noError(t, err)
		if w.Enabled || w.DisabledReason != "gone" || count(t, s, "events") != 1 {
			t.Errorf("%+v, %d events", w, count(t, s, "events"))
		}
		again, err := s.RetryDelivery(ctx, "whk_a", first.ID, tried)
		noError(t, err)
		if again.State != webhook.Pending || again.Attempts != 0 || !again.NextTryAt.Equal(tried) {
			t.Errorf("%+v", again)
		}
		for hook, id := range map[string]string{"whk_a": "dlv_none", "whk_none": first.ID} {
			_, err := s.RetryDelivery(ctx, hook, id, tried)
			hasCode(t, err, errs.NotFound, "delivery_not_found")
		}
		record(outcome, false) // it was overtaken by the retry
		hasCode(t, s.InsertDelivery(ctx, newDelivery("whk_a", "dlv_x", 9), 3), errs.TooMany, "too_many_pending")
		noError(t, s.DeleteWebhook(ctx, access.Owner("acc_a"), "whk_a", func(webhook.Webhook) error { return nil }))
		outcome.Was = again
		record(outcome, false) // the webhook is disabled already
		equal(t, count(t, s, "events"), 1)
	})
}

func TestDeliveryPages(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		insertHook(t, s, newHook("whk_a"))
		for i := range 5 {
			d := newDelivery("whk_a", fmt.Sprintf("dlv_%d", i), int64(i))
			d.CreatedAt = d.CreatedAt.Add(time.Duration(i) * time.Second)
			if i%2 == 1 {
				d.State, d.NextTryAt = webhook.Delivered, nil
			}
			noError(t, s.InsertDelivery(ctx, d, 100))
		}
		var ids []string
		f := webhook.Filter{Limit: 2}
		for {
			page, next, err := s.Deliveries(ctx, "whk_a", f)
			noError(t, err)
			for _, d := range page {
				ids = append(ids, d.ID)
				if d.Body != nil {
					t.Error("a list has bodies")
				}
			}
			if f.After = next; next == "" {
				break
			}
		}
		equal(t, fmt.Sprint(ids), "[dlv_4 dlv_3 dlv_2 dlv_1 dlv_0]")
		page, _, err := s.Deliveries(ctx, "whk_a", webhook.Filter{State: webhook.Delivered, Limit: 10})
		noError(t, err)
		equal(t, len(page), 2)
		_, _, err = s.Deliveries(ctx, "whk_a", webhook.Filter{After: "x", Limit: 1})
		hasCode(t, err, errs.Invalid, "invalid_after")
	})
}

func TestPruneDeliveries(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		began := now()
		for _, hook := range []string{"whk_a", "whk_b"} {
			insertHook(t, s, newHook(hook))
			for i := range 10 {
				d := newDelivery(hook, fmt.Sprintf("dlv_%s_%d", hook, i), int64(i))
				d.CreatedAt = began.Add(time.Duration(i) * time.Second)
				if i > 0 {
					d.State = webhook.Delivered
				}
				noError(t, s.InsertDelivery(ctx, d, 100))
			}
		}
		remove := func(before time.Time, most, batch, want int) {
			t.Helper()
			n, err := s.PruneDeliveries(ctx, before, most, batch)
			noError(t, err)
			equal(t, n, want)
		}
		remove(began, 9, 100, 0)
		remove(began, 5, 3, 3) // no more than a batch
		remove(began, 5, 100, 5)
		remove(began.Add(7*time.Second), 5, 100, 4)
		remove(began.Add(time.Hour), 5, 100, 6)
		equal(t, count(t, s, "webhook_deliveries"), 2) // pending ones stay
	})
}
