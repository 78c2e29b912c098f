package httpapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/server/httpapi"
	"github.com/hatchvm/hatch/internal/webhook"
)

// TestWebhookSecretsAreShownOnce looks for the secret in every answer.
func TestWebhookSecretsAreShownOnce(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "POST", "/webhooks", `{"url":"https://example.com","events":["vm.*"],"secret":"whsec_given","description":"d"}`)
	wantStatus(t, reply, 201)
	if got := decode[api.Webhook](t, reply); got.Secret != "whsec_hidden" {
		t.Errorf("%+v", got)
	}
	if made := s.webhooks.made; made.Secret != "whsec_given" || !made.Enabled || len(made.Events) != 1 || made.Description != "d" {
		t.Errorf("%+v", made)
	}
	for _, call := range []string{"GET /webhooks", "GET /webhooks/whk_1", "PATCH /webhooks/whk_1", "GET /webhooks/whk_1/deliveries", "POST /webhooks/whk_1/test"} {
		method, path, _ := strings.Cut(call, " ")
		body := ""
		if method == "PATCH" {
			body = `{"secret":"whsec_new"}`
		}
		reply := s.call(t, method, path, body)
		if reply.StatusCode >= 300 || strings.Contains(string(reply.body), "hidden") || strings.Contains(string(reply.body), "whsec_") {
			t.Errorf("%s: %d %s", call, reply.StatusCode, reply.body)
		}
	}
	if strings.Contains(s.log.String(), "whsec_") {
		t.Error("the log has a secret")
	}
}

func TestUpdateWebhook(t *testing.T) {
	s := newServer(t)
	wantStatus(t, s.call(t, "PATCH", "/webhooks/whk_1", `{"events":["vm.deleted","*"],"enabled":false}`), 200)
	c := s.webhooks.change
	if *c.URL != "https://example.com" || c.Secret != nil || *c.Description != "d" || len(c.Events) != 2 || c.Enabled == nil || *c.Enabled {
		t.Errorf("%+v", c)
	}
	wantStatus(t, s.call(t, "PATCH", "/webhooks/whk_1", `{}`), 200)
	if c := s.webhooks.change; len(c.Events) != 1 || c.Enabled != nil {
		t.Errorf("%+v", c)
	}
	r := s.request(t, "PATCH", "/webhooks/whk_1", `{"description":null,"enabled":null,"secret":"whsec_new"}`)
	r.Header.Set("Content-Type", "application/merge-patch+json; charset=utf-8")
	wantStatus(t, s.send(t, r), 200)
	if c := s.webhooks.change; *c.Description != "" || !*c.Enabled || *c.Secret != "whsec_new" {
		t.Errorf("%+v", c)
	}
}

func TestWebhookBodiesAreChecked(t *testing.T) {
	s := newServer(t)
	for body, code := range map[string]string{
		`{"events":["*"]}`:                                                                               "invalid_url",
		`{"url":"https://example.com"}`:                                                                  "invalid_events",
		`{"url":"https://example.com","events":[]}`:                                                      "invalid_events",
		`{"url":"https://example.com","events":["vm.delet"]}`:                                            "invalid_events",
		`{"url":"https://example.com","events":["*"],"surplus":1}`:                                       "unknown_field",
		`{"url":"https://` + strings.Repeat("x", 2048) + `","events":["*"]}`:                             "invalid_url",
		`{"url":"https://example.com","events":["*"],"description":"` + strings.Repeat("x", 1025) + `"}`: "invalid_description",
	} {
		reply := s.call(t, "POST", "/webhooks", body)
		wantStatus(t, reply, 400)
		if got := reply.problem(t).Code; got != code {
			t.Errorf("%.80s: %s, want %s", body, got, code)
		}
	}
}

func TestDeliveryPages(t *testing.T) {
	s := newServer(t)
	reply := s.call(t, "GET", "/webhooks/whk_1/deliveries?state=failed&limit=5", "")
	wantStatus(t, reply, 200)
	if link := reply.Header.Get("Link"); link != `</webhooks/whk_1/deliveries?after=cursor&limit=5&state=failed>; rel="next"` {
		t.Errorf("Link: %s", link)
	}
	if f := s.webhooks.filter; f != (webhook.Filter{State: webhook.Failed, Limit: 5}) {
		t.Errorf("%+v", f)
	}
	wantStatus(t, s.call(t, "GET", "/webhooks/whk_1/deliveries?state=lost", ""), 400)
}

// TestEventsAreEncodedAlike compares what webhooks send with what is listed.
func TestEventsAreEncodedAlike(t *testing.T) {
	s := newServer(t)
	e := sampleEvent(1, knownVM)
	s.events.log = append(s.events.log, e)
	text, err := httpapi.EncodeEvent(e)
	if err != nil {
		t.Fatal(err)
	}
	list := decode[[]json.RawMessage](t, s.call(t, "GET", "/events", ""))
	if string(list[0]) != string(text) {
		t.Errorf("listed %s\nsent   %s", list[0], text)
	}
}

func TestClientWebhooks(t *testing.T) {
	s := newServer(t)
	c, err := client.New(s.URL, goodKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx, no := t.Context(), false
	if w, err := c.CreateWebhook(ctx, api.CreateWebhook{URL: "https://example.com", Events: []string{"*"}}); err != nil || w.Secret == "" {
		t.Errorf("%+v, %v", w, err)
	}
	if list, err := c.ListWebhooks(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if w, err := c.GetWebhook(ctx, "whk_1"); err != nil || w.ID != "whk_1" {
		t.Errorf("%+v, %v", w, err)
	}
	if _, err := c.UpdateWebhook(ctx, "whk_1", api.UpdateWebhook{Enabled: &no}); err != nil || *s.webhooks.change.Enabled {
		t.Errorf("%+v, %v", s.webhooks.change, err)
	}
	if d, err := c.TestWebhook(ctx, "whk_1"); err != nil || d.ID != "dlv_1" {
		t.Errorf("%+v, %v", d, err)
	}
	if list, err := c.WebhookDeliveries(ctx, "whk_1", "pending"); err != nil || len(list) != 1 || s.webhooks.filter.State != webhook.Pending {
		t.Errorf("%+v, %v", list, err)
	}
	if d, err := c.RetryDelivery(ctx, "whk_1", "dlv_1"); err != nil || d.ID != "dlv_1" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := c.RetryDelivery(ctx, "whk_1", ".."); err == nil {
		t.Error("an odd id was sent")
	}
	if err := c.DeleteWebhook(ctx, "whk_none"); !client.IsNotFound(err) {
		t.Error(err)
	}
}
