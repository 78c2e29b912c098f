package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// webhookRoutes serves one webhook with one delivery, which is tried by the
// second look at it.
func (f *fakeServer) webhookRoutes(mux *http.ServeMux) {
	next := api.Time{Time: testNow.Add(5 * time.Second)}
	f.webhook = api.Webhook{ID: "whk_a00000000001", URL: "https://example.com/hook", Events: []string{"vm.*"}, Enabled: true, Description: "chat", CreatedAt: api.Time{Time: testNow.Add(-time.Hour)}}
	f.delivery = api.Delivery{
		ID: "dlv_a00000000001", WebhookID: f.webhook.ID, EventID: "evt_1", EventSeq: 7, EventType: "vm.deleted", State: api.DeliveryPending,
		StatusCode: 503, Error: "the receiver\x1b[31m answered 503", NextTryAt: &next, CreatedAt: api.Time{Time: testNow.Add(-time.Minute)},
	}
	mux.HandleFunc("GET /webhooks", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, []api.Webhook{f.webhook}) })
	mux.HandleFunc("GET /webhooks/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.webhook) })
	mux.HandleFunc("POST /webhooks", func(w http.ResponseWriter, _ *http.Request) {
		made := f.webhook
		made.Secret = "whsec_made"
		reply(w, 201, made)
	})
	mux.HandleFunc("PATCH /webhooks/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.webhook) })
	mux.HandleFunc("DELETE /webhooks/{id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("POST /webhooks/{id}/test", func(w http.ResponseWriter, _ *http.Request) { reply(w, 202, f.delivery) })
	mux.HandleFunc("POST /webhooks/{id}/deliveries/{delivery}/retry", func(w http.ResponseWriter, _ *http.Request) { reply(w, 202, f.delivery) })
	mux.HandleFunc("GET /webhooks/{id}/deliveries", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, []api.Delivery{f.delivery})
		f.delivery.Attempts = 1
	})
}

func TestWebhooks(t *testing.T) {
	f := newFake(t)
	for name, args := range map[string]string{
		"webhook-ls.txt":         "webhook ls -o wide",
		"webhook-inspect.json":   "webhook inspect whk_a",
		"webhook-deliveries.txt": "webhook deliveries whk_a -o wide",
	} {
		t.Run(name, func(t *testing.T) {
			f.delivery.Attempts = 1
			s := newSession(t, f)
			if code := s.hatch(strings.Fields(args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			golden(t, name, s.stdout.String())
		})
	}
}

func TestWebhookCreate(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	s.stdin = strings.NewReader("whsec_given\n")
	if code := s.hatch("webhook", "create", "https://example.com/hook", "--event", "vm.deleted", "--secret-file", "-"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &s.stderr)
	}
	if got := s.stdout.String(); got != "whk_a00000000001\nwhsec_made\n" {
		t.Errorf("got %q", got)
	}
	if body := f.lastBody(t); body != `{"url":"https://example.com/hook","events":["vm.deleted"],"secret":"whsec_given"}` {
		t.Errorf("posted %s", body)
	}
	s.hatch("webhook", "create", "https://example.com/hook")
	if body := f.lastBody(t); !strings.Contains(body, `"events":["*"]`) || strings.Contains(body, "secret") {
		t.Errorf("posted %s", body)
	}
}

func TestWebhookVerbs(t *testing.T) {
	f := newFake(t)
	s := newSession(t, f)
	if code := s.hatch("webhook", "test", "whk_a"); code != exitOwn || !strings.Contains(s.stderr.String(), "the receiver answered 503") || !strings.Contains(s.stderr.String(), "tried again at 2026-03-06 12:00:05") {
		t.Errorf("a test that fails: %d %s", code, &s.stderr)
	}
	f.delivery = api.Delivery{ID: f.delivery.ID, WebhookID: f.webhook.ID, State: api.DeliveryDelivered, StatusCode: 204, Attempts: 1}
	if code := s.hatch("webhook", "test", "whk_a"); code != 0 || s.stdout.String() != "delivered: the receiver answered 204\n" {
		t.Errorf("a test that succeeds: %d %s%s", code, &s.stdout, &s.stderr)
	}
	for args, call := range map[string]string{
		"webhook enable whk_a":                    "PATCH /webhooks/whk_a00000000001",
		"webhook rm whk_a":                        "DELETE /webhooks/whk_a00000000001",
		"webhook retry whk_a dlv_a00000000001":    "POST /webhooks/whk_a00000000001/deliveries/dlv_a00000000001/retry",
		"webhook deliveries whk_a --state failed": "GET /webhooks/whk_a00000000001/deliveries?limit=1000&state=failed",
	} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code != 0 || !f.called(call) {
				t.Errorf("%s: exit code %d: %s; called %v", args, code, &s.stderr, f.calls)
			}
		})
	}
	s.hatch("webhook", "disable", "whk_a")
	if body := f.lastBody(t); body != `{"enabled":false}` {
		t.Errorf("sent %s", body)
	}
	for _, args := range []string{"webhook rm whk_none", "webhook retry whk_a", "webhook test"} {
		t.Run(args, func(t *testing.T) {
			if code := s.hatch(strings.Fields(args)...); code == 0 || !strings.Contains(s.stderr.String(), "hint: hatch ") {
				t.Errorf("%s: %d %s", args, code, &s.stderr)
			}
		})
	}
}
