package client

import (
	"context"

	"github.com/hatchvm/hatch/api"
)

const keys = "/keys"

// CreateKey creates an API key. Only this result has its secret.
func (c *Client) CreateKey(ctx context.Context, body api.CreateKey) (api.Key, error) {
	return post[api.Key](ctx, c, keys, body)
}

// ListKeys returns all keys, without their secrets.
func (c *Client) ListKeys(ctx context.Context) ([]api.Key, error) {
	return list[api.Key](ctx, c, keys, nil)
}

// DeleteKey revokes a key at once.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	return c.remove(ctx, keys, id)
}
