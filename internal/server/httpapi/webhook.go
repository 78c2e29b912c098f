package httpapi

import (
	"context"
	"encoding/json"
	"net/url"
	"strconv"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/webhook"
)

const createWebhookText = `Post events to a URL from now on, signed as the Standard Webhooks specification says. Only this response contains the secret.`

// Webhooks manages webhooks. [webhook.Service] implements it.
type Webhooks interface {
	// Create returns the webhook with its secret, which no other call returns.
	Create(ctx context.Context, owner string, w webhook.Webhook) (webhook.Webhook, error)
	Get(ctx context.Context, scope access.Scope, id string) (webhook.Webhook, error)
	List(ctx context.Context, scope access.Scope) ([]webhook.Webhook, error)
	// Update and Delete change nothing if their function returns an error.
	Update(ctx context.Context, scope access.Scope, id string, change func(webhook.Webhook) (webhook.Change, error)) (webhook.Webhook, error)
	Delete(ctx context.Context, scope access.Scope, id string, check func(webhook.Webhook) error) error
	Test(ctx context.Context, scope access.Scope, id string) (webhook.Delivery, error)
	Deliveries(ctx context.Context, scope access.Scope, id string, f webhook.Filter) (page []webhook.Delivery, next string, err error)
	Retry(ctx context.Context, scope access.Scope, webhookID, deliveryID string) (webhook.Delivery, error)
}

type webhookHandlers struct {
	*door
	webhooks Webhooks
}

// EncodeEvent returns an event as the API shows it, for webhooks.
func EncodeEvent(e event.Event) (json.RawMessage, error) { return json.Marshal(shownEvent(e)) }

type createWebhookInput struct {
	Body api.CreateWebhook
}

func (h *webhookHandlers) create(ctx context.Context, in *createWebhookInput) (*created[api.Webhook], error) {
	b := in.Body
	patterns, err := event.ParsePatterns("events", b.Events)
	if err != nil {
		return nil, err
	}
	made, err := h.webhooks.Create(ctx, owner(ctx), webhook.Webhook{
		URL: b.URL, Events: patterns, Secret: b.Secret, Description: b.Description,
		Enabled: b.Enabled == nil || *b.Enabled,
	})
	if err != nil {
		return nil, err
	}
	out := &created[api.Webhook]{Location: "/webhooks/" + made.ID, Body: shownWebhook(made)}
	out.Body.Secret = made.Secret
	return out, nil
}

func (h *webhookHandlers) list(ctx context.Context, in *PageInput) (*paged[api.Webhook], error) {
	hooks, err := h.webhooks.List(ctx, scope(ctx))
	if err != nil {
		return nil, err
	}
	return list[webhook.Webhook, api.Webhook]{
		all: hooks, show: shownWebhook, path: "/webhooks",
		at: func(w webhook.Webhook) position { return position{w.CreatedAt, w.ID} },
	}.page(*in)
}

func (h *webhookHandlers) get(ctx context.Context, in *ConditionalIDPath) (*tagged[api.Webhook], error) {
	w, err := h.webhooks.Get(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return withTag(in.Conditions, shownWebhook(w), w.UpdatedAt)
}

func (h *webhookHandlers) update(ctx context.Context, in *patchInput) (*tagged[api.Webhook], error) {
	var given struct {
		Enabled json.RawMessage `json:"enabled"`
	}
	_ = json.Unmarshal(in.RawBody, &given) // patched refuses what cannot be read
	w, err := h.webhooks.Update(ctx, scope(ctx), in.ID, func(w webhook.Webhook) (webhook.Change, error) {
		shown := shownWebhook(w)
		if err := in.allowObject(shown, w.UpdatedAt); err != nil {
			return webhook.Change{}, err
		}
		after, err := patched[api.UpdateWebhook](h.door, shown, in.RawBody, []string{"url", "events", "secret", "description", "enabled"}, nil)
		if err != nil {
			return webhook.Change{}, err
		}
		patterns, err := event.ParsePatterns("events", after.Events)
		change := webhook.Change{URL: &after.URL, Events: patterns, Description: &after.Description}
		if after.Secret != "" { // it is not shown
			change.Secret = &after.Secret
		}
		if given.Enabled != nil { // also as it is: then its owner says so
			change.Enabled = new(after.Enabled || string(given.Enabled) == "null")
		}
		return change, err
	})
	if err != nil {
		return nil, err
	}
	return withTag(Conditions{}, shownWebhook(w), w.UpdatedAt)
}

func (h *webhookHandlers) delete(ctx context.Context, in *ConditionalIDPath) (*answer[api.Deleted], error) {
	err := h.webhooks.Delete(ctx, scope(ctx), in.ID, func(w webhook.Webhook) error { return in.allowObject(shownWebhook(w), w.UpdatedAt) })
	if err != nil {
		return nil, err
	}
	return deleted(), nil
}

type testWebhookOutput struct {
	Replay
	Body api.Delivery
}

func (h *webhookHandlers) test(ctx context.Context, in *IDPath) (*testWebhookOutput, error) {
	d, err := h.webhooks.Test(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &testWebhookOutput{Body: shownDelivery(d)}, nil
}

// replayTest answers with the delivery that an earlier request has made.
func (h *webhookHandlers) replayTest(ctx context.Context, in *IDPath, made []string) (*testWebhookOutput, error) {
	page, _, err := h.webhooks.Deliveries(ctx, scope(ctx), in.ID, webhook.Filter{ID: made[0], Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(page) == 0 {
		return nil, errs.New(errs.NotFound, "delivery_not_found", "there is no such delivery")
	}
	return &testWebhookOutput{Body: shownDelivery(page[0])}, nil
}

type listDeliveriesInput struct {
	IDPath
	State string `query:"state" enum:"pending,delivered,failed" doc:"Only deliveries in this state."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Deliveries on a page."`
	After string `query:"after" maxLength:"64" doc:"Only deliveries after this one in the list; the Link header has it."`
}

type listDeliveriesOutput struct {
	Link string         `header:"Link" doc:"The next page, rel=\"next\"; absent on the last."`
	Body []api.Delivery `nullable:"false"`
}

func (h *webhookHandlers) listDeliveries(ctx context.Context, in *listDeliveriesInput) (*listDeliveriesOutput, error) {
	page, next, err := h.webhooks.Deliveries(ctx, scope(ctx), in.ID, webhook.Filter{State: webhook.State(in.State), Limit: in.Limit, After: in.After})
	if err != nil {
		return nil, err
	}
	out := &listDeliveriesOutput{Body: make([]api.Delivery, len(page))}
	for i, delivery := range page {
		out.Body[i] = shownDelivery(delivery)
	}
	if next != "" {
		q := url.Values{"limit": {strconv.Itoa(in.Limit)}, "after": {next}}
		if in.State != "" {
			q.Set("state", in.State)
		}
		out.Link = "</webhooks/" + url.PathEscape(in.ID) + "/deliveries?" + q.Encode() + `>; rel="next"`
	}
	return out, nil
}

type retryDeliveryInput struct {
	IDPath
	DeliveryID string `path:"delivery_id" doc:"The delivery's ID."`
}

func (h *webhookHandlers) retryDelivery(ctx context.Context, in *retryDeliveryInput) (*answer[api.Delivery], error) {
	return theDelivery(h.webhooks.Retry(ctx, scope(ctx), in.ID, in.DeliveryID))
}

func theDelivery(d webhook.Delivery, err error) (*answer[api.Delivery], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Delivery]{Body: shownDelivery(d)}, nil
}

// shownWebhook returns a webhook without its secret.
func shownWebhook(w webhook.Webhook) api.Webhook {
	out := api.Webhook{
		ID: w.ID, URL: w.URL, Events: make([]string, len(w.Events)), Description: w.Description,
		Enabled: w.Enabled, DisabledReason: w.DisabledReason, CreatedAt: utc(w.CreatedAt), UpdatedAt: utc(w.UpdatedAt),
	}
	for i, p := range w.Events {
		out.Events[i] = string(p)
	}
	return out
}

func shownDelivery(d webhook.Delivery) api.Delivery {
	return api.Delivery{
		ID: d.ID, WebhookID: d.WebhookID, EventID: d.EventID, EventSeq: d.EventSeq, EventType: string(d.EventType),
		State: string(d.State), Attempts: d.Attempts, StatusCode: d.StatusCode, Error: d.Error,
		NextTryAt: utcOrNil(d.NextTryAt), TriedAt: utcOrNil(d.TriedAt), CreatedAt: utc(d.CreatedAt),
	}
}
