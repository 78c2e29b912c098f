package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/store/storetest"
	"github.com/hatchvm/hatch/internal/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const owner = access.AdminID

// world is a service with a real store and a receiver with set responses.
// It lives in a bubble: its clock advances when all are idle.
type world struct {
	*webhook.Service
	store *store.Store
	log   strings.Builder

	mu       sync.Mutex
	answer   func(n int, m webhook.Message) (webhook.Answer, error) // n counts from 1
	messages []webhook.Message
	times    []time.Time
	inFlight int
	most     int // at once
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st := storetest.Open(t)
	if err := st.InsertUser(t.Context(), access.User{ID: owner, Name: "admin", CreatedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	w := &world{store: st}
	w.serve()
	t.Cleanup(func() { _ = w.Close(); _ = st.Close() })
	return w
}

// serve starts a service over the store, as a daemon does.
func (w *world) serve() {
	w.Service = webhook.New(webhook.Config{
		Store: w.store, Sender: w, Keep: 365 * 24 * time.Hour, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Encode: func(e event.Event) (json.RawMessage, error) { return json.Marshal(map[string]any{"seq": e.Seq}) },
	})
}

func (w *world) Send(ctx context.Context, m webhook.Message) (webhook.Answer, error) {
	w.mu.Lock()
	w.messages, w.times = append(w.messages, m), append(w.times, time.Now())
	n, answer := len(w.messages), w.answer
	w.inFlight++
	w.most = max(w.most, w.inFlight)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.inFlight--
		w.mu.Unlock()
	}()
	if answer == nil {
		return webhook.Answer{StatusCode: 200}, ctx.Err()
	}
	return answer(n, m)
}

func (w *world) sent() int { return len(w.seen()) }

// seen returns the messages that the receiver got.
func (w *world) seen() []webhook.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.messages)
}

// respond sets how the receiver answers from now on; nil means status 200.
func (w *world) respond(answer func(n int, m webhook.Message) (webhook.Answer, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// forget discards the received messages and makes the receiver answer 200.
func (w *world) forget() {
	w.respond(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages, w.times = nil, nil
}

func (w *world) hook(t *testing.T, patterns ...event.Pattern) webhook.Webhook {
	t.Helper()
	made, err := w.Create(t.Context(), owner, webhook.Webhook{URL: "https://example.com/hook", Events: patterns, Enabled: true})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (w *world) happen(t *testing.T, n int, kind event.Type) {
	t.Helper()
	events := make([]event.Event, n)
	for i := range events {
		events[i] = event.Of(kind, "m", nil)
		events[i].OwnerID = owner
	}
	if err := w.store.AppendEvents(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

// wait lets time pass.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (w *world) deliveries(t *testing.T, id string) []webhook.Delivery {
	t.Helper()
	page, _, err := w.Deliveries(t.Context(), access.Owner(owner), id, webhook.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t)) })
}

func TestEventsAreDelivered(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.happen(t, 1, event.VMCreated) // before the webhook exists
		made := w.hook(t, "vm.*")
		if !strings.HasPrefix(made.Secret, "whsec_") || !strings.HasPrefix(made.ID, "whk_") {
			t.Errorf("%+v", made)
		}
		w.happen(t, 1, event.VMCreated)
		w.happen(t, 1, event.WebhookFailed) // events about webhooks are not delivered
		w.happen(t, 1, event.VMDeleted)
		wait(time.Second)
		list := w.deliveries(t, made.ID)
		if w.sent() != 2 || len(list) != 2 {
			t.Fatalf("%d sent, %d deliveries", w.sent(), len(list))
		}
		first := list[slices.IndexFunc(list, func(d webhook.Delivery) bool { return d.EventSeq == 2 })]
		messages := w.seen()
		m := messages[slices.IndexFunc(messages, func(m webhook.Message) bool { return m.ID == first.EventID })]
		if m.URL != made.URL || !strings.HasPrefix(m.ID, "evt_") || !strings.HasPrefix(m.Signature, "v1,") || m.Timestamp.IsZero() {
			t.Errorf("%+v", m)
		}
		var body struct {
			Type      event.Type
			Timestamp time.Time
			Data      struct{ Seq int64 }
		}
		if err := json.Unmarshal(m.Body, &body); err != nil || body.Type != event.VMCreated || body.Data.Seq != 2 || body.Timestamp.IsZero() {
			t.Errorf("%s: %v", m.Body, err)
		}
		for _, d := range list {
			if d.State != webhook.Delivered || d.Attempts != 1 || d.StatusCode != 200 || d.Error != "" || d.NextTryAt != nil || d.TriedAt == nil {
				t.Errorf("%+v", d)
			}
		}
	})
}

// TestBackoffGrows counts the time between the attempts of a delivery that never
// succeeds.
func TestBackoffGrows(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		w.respond(func(_ int, m webhook.Message) (webhook.Answer, error) {
			if strings.Contains(string(m.Body), "webhook.") {
				t.Errorf("a webhook received an event about webhooks: %s", m.Body)
			}
			return webhook.Answer{StatusCode: 500}, nil
		})
		w.happen(t, 1, event.VMCreated)
		wait(48 * time.Hour)
		pauses := []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour}
		if w.sent() != len(pauses)+1 {
			t.Fatalf("%d attempts", w.sent())
		}
		messages := w.seen()
		for i, want := range pauses {
			if got := w.times[i+1].Sub(w.times[i]); got < want || got > want*5/4+time.Second {
				t.Errorf("pause %d is %s, want about %s", i, got, want)
			}
			if messages[i+1].ID != messages[0].ID || string(messages[i+1].Body) != string(messages[0].Body) {
				t.Errorf("attempt %d is of another message", i+1)
			}
			if messages[i+1].Signature == messages[i].Signature || !messages[i+1].Timestamp.After(messages[i].Timestamp) {
				t.Errorf("attempt %d is not signed again", i+1)
			}
		}
		d := w.deliveries(t, made.ID)[0]
		if d.State != webhook.Failed || d.Attempts != 8 || d.StatusCode != 500 || d.Error != "the receiver answered 500" || d.NextTryAt != nil {
			t.Errorf("%+v", d)
		}
		events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, Types: []event.Pattern{"webhook.*"}, Limit: 9})
		if err != nil || len(events) != 1 || events[0].Type != event.WebhookFailed || !strings.Contains(events[0].Message, "after 8 attempts: the receiver answered 500") {
			t.Errorf("the events are %+v, %v", events, err)
		}
		w.respond(nil)
		if _, err := w.Retry(t.Context(), access.Owner(owner), made.ID, d.ID); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if d := w.deliveries(t, made.ID)[0]; d.State != webhook.Delivered || d.Attempts != 1 {
			t.Errorf("after a retry: %+v", d)
		}
		if _, err := w.Retry(t.Context(), access.Owner(owner), made.ID, "dlv_none"); !errs.HasCode(err, "delivery_not_found") {
			t.Error(err)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.hook(t, "*")
		w.respond(func(n int, _ webhook.Message) (webhook.Answer, error) {
			return []webhook.Answer{{StatusCode: 429, RetryAfter: 90 * time.Second}, {StatusCode: 204}}[n-1], nil
		})
		w.happen(t, 1, event.VMCreated)
		wait(89 * time.Second)
		if w.sent() != 1 {
			t.Error("attempted before Retry-After has passed")
		}
		wait(10 * time.Second)
		if w.sent() != 2 {
			t.Error("not attempted again")
		}
	})
}

func TestGoneDisables(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		w.respond(func(int, webhook.Message) (webhook.Answer, error) { return webhook.Answer{StatusCode: 410}, nil })
		w.happen(t, 1, event.VMCreated)
		wait(time.Second)
		got, err := w.Get(t.Context(), access.Owner(owner), made.ID)
		if err != nil || got.Enabled || !strings.Contains(got.DisabledReason, "410") {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := w.Test(t.Context(), access.Owner(owner), made.ID); !errs.HasCode(err, "webhook_disabled") {
			t.Errorf("a test of a disabled webhook: %v", err)
		}
		w.happen(t, 3, event.VMCreated)
		wait(time.Hour)
		if w.sent() != 1 {
			t.Errorf("%d sent", w.sent())
		}
		w.respond(nil)
		yes := true
		if got, err := w.Update(t.Context(), access.Owner(owner), made.ID, func(webhook.Webhook) (webhook.Change, error) { return webhook.Change{Enabled: &yes}, nil }); err != nil || !got.Enabled || got.DisabledReason != "" {
			t.Errorf("%+v, %v", got, err)
		}
		w.happen(t, 1, event.VMDeleted)
		wait(time.Second)
		if w.sent() != 2 {
			t.Errorf("%d sent, want only the event after the webhook was enabled again", w.sent())
		}
	})
}

// TestRetryDuringAnAttempt requests another attempt while one is in flight that will be
// the last: the retry is not lost in its outcome.
func TestRetryDuringAnAttempt(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		w.respond(func(n int, _ webhook.Message) (webhook.Answer, error) {
			if n == 8 {
				<-time.After(5 * time.Second)
			}
			return webhook.Answer{StatusCode: 500}, nil
		})
		w.happen(t, 1, event.VMCreated)
		for w.sent() < 8 {
			wait(time.Second)
		}
		d := w.deliveries(t, made.ID)[0]
		if _, err := w.Retry(t.Context(), access.Owner(owner), made.ID, d.ID); err != nil {
			t.Fatal(err)
		}
		w.respond(nil)
		wait(time.Minute)
		if d := w.deliveries(t, made.ID)[0]; d.State != webhook.Delivered || d.Attempts != 1 {
			t.Errorf("after a retry: %+v", d)
		}
		if last, _ := w.store.LastEvent(t.Context()); last != 1 {
			t.Error("a pending delivery is reported as failed")
		}
	})
}

// TestGoneFromAnotherAddress answers 410 at the old URL, after the owner has
// changed it.
func TestGoneFromAnotherAddress(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		w.respond(func(_ int, m webhook.Message) (webhook.Answer, error) {
			if m.URL == made.URL {
				<-time.After(5 * time.Second)
				return webhook.Answer{StatusCode: 410}, nil
			}
			return webhook.Answer{StatusCode: 200}, nil
		})
		w.happen(t, 1, event.VMCreated)
		wait(time.Second)
		elsewhere := "https://example.com/elsewhere"
		if _, err := w.Update(t.Context(), access.Owner(owner), made.ID, func(webhook.Webhook) (webhook.Change, error) { return webhook.Change{URL: &elsewhere}, nil }); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		got, err := w.Get(t.Context(), access.Owner(owner), made.ID)
		if err != nil || !got.Enabled {
			t.Errorf("%+v, %v", got, err)
		}
		if d := w.deliveries(t, made.ID)[0]; d.State != webhook.Delivered {
			t.Errorf("%+v", d)
		}
	})
}

// TestTestsAreBounded tests a webhook whose receiver never answers 2xx.
func TestTestsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "vm.deleted")
		w.respond(func(int, webhook.Message) (webhook.Answer, error) { return webhook.Answer{}, errors.New("down") })
		for i := 0; ; i++ {
			_, err := w.Test(t.Context(), access.Owner(owner), made.ID)
			if errs.HasCode(err, "too_many_pending") && i >= 100 {
				return
			}
			if err != nil || i > 700 {
				t.Fatalf("after %d tests: %v", i, err)
			}
		}
	})
}

// TestDispatcherCrash ends the service during attempts; the next one
// repeats them and loses no event.
func TestDispatcherCrash(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		reached := make(chan struct{}, 100)
		w.respond(func(int, webhook.Message) (webhook.Answer, error) {
			reached <- struct{}{}
			<-time.After(time.Second)
			return webhook.Answer{}, context.Canceled
		})
		w.happen(t, 30, event.VMCreated)
		<-reached
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		before := w.deliveries(t, made.ID)
		for _, d := range before {
			if d.State != webhook.Pending || d.Attempts != 0 {
				t.Errorf("an interrupted attempt counts: %+v", d)
			}
		}
		w.happen(t, 5, event.VMDeleted) // while hatchd is down
		w.forget()
		w.serve()
		wait(10 * time.Second)
		seen := map[string]int{}
		for _, m := range w.seen() {
			seen[m.ID]++
		}
		if len(seen) != 35 {
			t.Errorf("%d of 35 events were delivered", len(seen))
		}
		for _, d := range w.deliveries(t, made.ID) {
			if d.State != webhook.Delivered {
				t.Errorf("%+v", d)
			}
		}
	})
}

// TestSlowReceiverDelaysNoOther has a receiver that never answers.
func TestSlowReceiverDelaysNoOther(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		slow, err := w.Create(t.Context(), owner, webhook.Webhook{URL: "https://slow.example", Events: []event.Pattern{"*"}, Enabled: true})
		if err != nil {
			t.Fatal(err)
		}
		quick := w.hook(t, "*")
		w.respond(func(_ int, m webhook.Message) (webhook.Answer, error) {
			if m.URL == slow.URL {
				<-time.After(10 * time.Second)
				return webhook.Answer{}, errors.New("the receiver did not answer in time")
			}
			return webhook.Answer{StatusCode: 200}, nil
		})
		w.happen(t, 100, event.VMCreated)
		wait(9 * time.Second)
		for _, d := range w.deliveries(t, quick.ID) {
			if d.State != webhook.Delivered {
				t.Fatalf("%+v", d)
			}
		}
		w.mu.Lock()
		if w.most > 8 {
			t.Errorf("%d attempts at once for two webhooks", w.most)
		}
		w.mu.Unlock()
		wait(2 * time.Second)
		tried := 0
		for _, d := range w.deliveries(t, slow.ID) {
			if tried += d.Attempts; d.Attempts > 0 && d.Error != "the receiver did not answer in time" {
				t.Errorf("%+v", d)
			}
		}
		if tried != 4 {
			t.Errorf("%d deliveries of the slow receiver were attempted in 11 s, 4 at a time", tried)
		}
	})
}

// TestPendingDeliveriesAreBounded leaves events beyond the limit in the event log.
func TestPendingDeliveriesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.hook(t, "*")
		w.respond(func(int, webhook.Message) (webhook.Answer, error) { return webhook.Answer{}, errors.New("down") })
		for range 8 {
			w.happen(t, 100, event.VMCreated)
		}
		wait(time.Minute)
		subscriptions, err := w.store.Subscriptions(t.Context())
		if err != nil || len(subscriptions) != 1 || subscriptions[0].Pending < 500 || subscriptions[0].Pending > 600 {
			t.Fatalf("%+v, %v", subscriptions, err)
		}
		w.forget()
		wait(2 * time.Hour)
		seen := map[string]bool{}
		for _, m := range w.seen() {
			seen[m.ID] = true
		}
		if len(seen) != 800 {
			t.Errorf("%d of 800 events were delivered once the receiver was back", len(seen))
		}
	})
}

func TestTestingAWebhook(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "vm.deleted")
		d, err := w.Test(t.Context(), access.Owner(owner), made.ID)
		if err != nil || d.State != webhook.Pending || d.EventType != event.WebhookTest {
			t.Fatalf("%+v, %v", d, err)
		}
		wait(time.Second)
		if list := w.deliveries(t, made.ID); len(list) != 1 || list[0].State != webhook.Delivered || list[0].EventSeq != 0 {
			t.Errorf("%+v", list)
		}
		if last, _ := w.store.LastEvent(t.Context()); last != 0 {
			t.Error("a test is in the event log")
		}
	})
}

func TestWebhooksOfOtherOwnersAreNotFound(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		made := w.hook(t, "*")
		ctx := t.Context()
		for name, call := range map[string]func() error{
			"get": func() error { _, err := w.Get(ctx, access.Owner("acc_b"), made.ID); return err },
			"update": func() error {
				_, err := w.Update(ctx, access.Owner("acc_b"), made.ID, func(webhook.Webhook) (webhook.Change, error) { return webhook.Change{}, nil })
				return err
			},
			"delete": func() error { return w.Delete(ctx, access.Owner("acc_b"), made.ID, allow) },
			"test":   func() error { _, err := w.Test(ctx, access.Owner("acc_b"), made.ID); return err },
			"retry":  func() error { _, err := w.Retry(ctx, access.Owner("acc_b"), made.ID, "dlv_x"); return err },
			"deliveries": func() error {
				_, _, err := w.Deliveries(ctx, access.Owner("acc_b"), made.ID, webhook.Filter{Limit: 1})
				return err
			},
		} {
			if err := call(); !errs.HasCode(err, "webhook_not_found") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if list, err := w.List(ctx, access.Owner("acc_b")); err != nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestWebhookRefusals(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		good := webhook.Webhook{URL: "https://example.com", Events: []event.Pattern{"*"}}
		for field, spoil := range map[string]func(*webhook.Webhook){
			"url":         func(h *webhook.Webhook) { h.URL = "https://10.0.0.1" },
			"events":      func(h *webhook.Webhook) { h.Events = nil },
			"secret":      func(h *webhook.Webhook) { h.Secret = "hunter2" },
			"description": func(h *webhook.Webhook) { h.Description = "a\x00b" },
		} {
			bad := good
			spoil(&bad)
			if _, err := w.Create(t.Context(), owner, bad); !errs.HasCode(err, "invalid_"+field) {
				t.Errorf("%s: %v", field, err)
			}
		}
		made := w.hook(t, "*")
		private := "http://192.168.1.1"
		if _, err := w.Update(t.Context(), access.Owner(owner), made.ID, func(webhook.Webhook) (webhook.Change, error) { return webhook.Change{URL: &private}, nil }); !errs.HasCode(err, "invalid_url") {
			t.Error(err)
		}
		for i := 1; ; i++ {
			_, err := w.Create(t.Context(), owner, good)
			if errs.HasCode(err, "too_many_webhooks") && i == webhook.MaxWebhooks {
				break
			}
			if err != nil || i > webhook.MaxWebhooks {
				t.Fatal(fmt.Sprint(i), err)
			}
		}
		if text := w.log.String(); strings.Contains(text, made.Secret) {
			t.Error("the log has a secret")
		}
	})
}

func allow(webhook.Webhook) error { return nil }
