package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

const webhooks = "/webhooks"

// CreateWebhook creates a webhook. Only this result has its Secret.
func (c *Client) CreateWebhook(ctx context.Context, body api.CreateWebhook) (api.Webhook, error) {
	return post[api.Webhook](ctx, c, webhooks, body)
}

// ListWebhooks returns all webhooks, without their secrets.
func (c *Client) ListWebhooks(ctx context.Context) ([]api.Webhook, error) {
	return list[api.Webhook](ctx, c, webhooks, nil)
}

// GetWebhook returns one webhook.
func (c *Client) GetWebhook(ctx context.Context, id string) (api.Webhook, error) {
	return fetch[api.Webhook](ctx, c, http.MethodGet, webhooks, id)
}

// UpdateWebhook changes a webhook. Nil fields do not change.
func (c *Client) UpdateWebhook(ctx context.Context, id string, body api.UpdateWebhook) (api.Webhook, error) {
	return change[api.Webhook](ctx, c, webhooks, id, body)
}

// DeleteWebhook deletes a webhook and its deliveries.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	return c.remove(ctx, webhooks, id)
}

// TestWebhook sends a test event to a webhook, and returns its delivery, which may
// still be pending.
func (c *Client) TestWebhook(ctx context.Context, id string) (api.Delivery, error) {
	return fetch[api.Delivery](ctx, c, http.MethodPost, webhooks, id, "test")
}

// WebhookDeliveries returns the newest deliveries of a webhook, at most 1000, or
// only those in a state.
func (c *Client) WebhookDeliveries(ctx context.Context, id, state string) ([]api.Delivery, error) {
	path, err := item(webhooks, id, "deliveries")
	if err != nil {
		return nil, err
	}
	query := url.Values{"limit": {"1000"}}
	setString(query, "state", state)
	var out []api.Delivery
	_, err = c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &out)
	return out, err
}

// RetryDelivery sends a delivery again, in any state.
func (c *Client) RetryDelivery(ctx context.Context, webhookID, deliveryID string) (api.Delivery, error) {
	deliveries, err := item(webhooks, webhookID, "deliveries")
	if err != nil {
		return api.Delivery{}, err
	}
	return fetch[api.Delivery](ctx, c, http.MethodPost, deliveries, deliveryID, "retry")
}
