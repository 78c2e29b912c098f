package client

import (
	"context"
	"net/url"

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

// ListKeysOf returns the keys of the user with an id or a name. Only admins may.
func (c *Client) ListKeysOf(ctx context.Context, user string) ([]api.Key, error) {
	return list[api.Key](ctx, c, keys, url.Values{"user_id": {user}})
}

// DeleteKey revokes a key at once.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	return c.remove(ctx, keys, id)
}
