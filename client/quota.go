package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

const ofUsers = "/users"

// Usage returns what the caller's user owns, and may own.
func (c *Client) Usage(ctx context.Context) (api.Usage, error) {
	return fetch[api.Usage](ctx, c, http.MethodGet, "/me", "usage")
}

// UserUsage returns what a user owns, and may own. user is an id or a name.
func (c *Client) UserUsage(ctx context.Context, user string) (api.Usage, error) {
	return fetch[api.Usage](ctx, c, http.MethodGet, ofUsers, user, "usage")
}

// UserQuota returns the limits that an admin has set for a user.
func (c *Client) UserQuota(ctx context.Context, user string) (api.Quota, error) {
	return fetch[api.Quota](ctx, c, http.MethodGet, ofUsers, user, "quota")
}

// SetUserQuota replaces a user's own limits. Nil ones become the server's.
func (c *Client) SetUserQuota(ctx context.Context, user string, limits api.QuotaLimits) (out api.Quota, err error) {
	path, err := item(ofUsers, user, "quota")
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, call{method: http.MethodPut, path: path, body: limits}, &out)
	return out, err
}
