package httpapi

import (
	"context"
	"encoding/json"
	"net/url"
	"strconv"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/webhook"
)

const createWebhookText = `Have events posted to a server from now on, signed as Standard Webhooks asks. The secret is in this answer and nowhere else.`

// Webhooks is what can be done with webhooks. [webhook.Service] is one.
type Webhooks interface {
	// Create returns the webhook with its secret, which nobody sees again.
	Create(ctx context.Context, owner string, w webhook.Webhook) (webhook.Webhook, error)
	Get(ctx context.Context, owner, id string) (webhook.Webhook, error)
	List(ctx context.Context, owner string) ([]webhook.Webhook, error)
	Update(ctx context.Context, owner, id string, c webhook.Change) (webhook.Webhook, error)
	Delete(ctx context.Context, owner, id string) error
	Test(ctx context.Context, owner, id string) (webhook.Delivery, error)
	Deliveries(ctx context.Context, owner, id string, f webhook.Filter) (page []webhook.Delivery, next string, err error)
	Retry(ctx context.Context, owner, webhookID, deliveryID string) (webhook.Delivery, error)
}

// EncodeEvent returns an event as the API shows it, for those who are told of
// it by other ways than a request of theirs.
func EncodeEvent(e event.Event) (json.RawMessage, error) { return json.Marshal(shownEvent(e)) }

type createWebhookInput struct {
	Body api.CreateWebhook
}

func (d *door) createWebhook(ctx context.Context, in *createWebhookInput) (*created[api.Webhook], error) {
	b := in.Body
	patterns, err := event.ParsePatterns("events", b.Events)
	if err != nil {
		return nil, err
	}
	made, err := d.Webhooks.Create(ctx, owner(ctx), webhook.Webhook{
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

type listWebhooksOutput struct {
	Body []api.Webhook `nullable:"false"`
}

func (d *door) listWebhooks(ctx context.Context, _ *struct{}) (*listWebhooksOutput, error) {
	hooks, err := d.Webhooks.List(ctx, owner(ctx))
	if err != nil {
		return nil, err
	}
	out := &listWebhooksOutput{Body: make([]api.Webhook, len(hooks))}
	for i, w := range hooks {
		out.Body[i] = shownWebhook(w)
	}
	return out, nil
}

func (d *door) getWebhook(ctx context.Context, in *IDPath) (*answer[api.Webhook], error) {
	return theWebhook(d.Webhooks.Get(ctx, owner(ctx), in.ID))
}

type updateWebhookInput struct {
	IDPath
	Body api.UpdateWebhook
}

func (d *door) updateWebhook(ctx context.Context, in *updateWebhookInput) (*answer[api.Webhook], error) {
	b := in.Body
	change := webhook.Change{URL: b.URL, Secret: b.Secret, Description: b.Description, Enabled: b.Enabled}
	if b.Events != nil {
		var err error
		if change.Events, err = event.ParsePatterns("events", b.Events); err != nil {
			return nil, err
		}
	}
	return theWebhook(d.Webhooks.Update(ctx, owner(ctx), in.ID, change))
}

func (d *door) deleteWebhook(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := d.Webhooks.Delete(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func (d *door) testWebhook(ctx context.Context, in *IDPath) (*answer[api.Delivery], error) {
	return theDelivery(d.Webhooks.Test(ctx, owner(ctx), in.ID))
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

func (d *door) listDeliveries(ctx context.Context, in *listDeliveriesInput) (*listDeliveriesOutput, error) {
	page, next, err := d.Webhooks.Deliveries(ctx, owner(ctx), in.ID, webhook.Filter{State: webhook.State(in.State), Limit: in.Limit, After: in.After})
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

func (d *door) retryDelivery(ctx context.Context, in *retryDeliveryInput) (*answer[api.Delivery], error) {
	return theDelivery(d.Webhooks.Retry(ctx, owner(ctx), in.ID, in.DeliveryID))
}

func theWebhook(w webhook.Webhook, err error) (*answer[api.Webhook], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Webhook]{Body: shownWebhook(w)}, nil
}

func theDelivery(d webhook.Delivery, err error) (*answer[api.Delivery], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Delivery]{Body: shownDelivery(d)}, nil
}

// shownWebhook leaves the secret out.
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
