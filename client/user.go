package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

const users = "/users"

// Me returns who the client is, and what its key can be used for.
func (c *Client) Me(ctx context.Context) (api.Me, error) {
	var out api.Me
	_, err := c.do(ctx, call{method: http.MethodGet, path: "/me"}, &out)
	return out, err
}

// CreateUser creates a user, who has no key yet. Only admins may manage users.
func (c *Client) CreateUser(ctx context.Context, body api.CreateUser) (api.User, error) {
	return post[api.User](ctx, c, users, body)
}

// ListUsers returns all users.
func (c *Client) ListUsers(ctx context.Context) ([]api.User, error) {
	return list[api.User](ctx, c, users, nil)
}

// GetUser returns the user with an id or a name.
func (c *Client) GetUser(ctx context.Context, idOrName string) (api.User, error) {
	return fetch[api.User](ctx, c, http.MethodGet, users, idOrName)
}

// UpdateUser changes a user. Nil fields do not change.
func (c *Client) UpdateUser(ctx context.Context, idOrName string, body api.UpdateUser) (api.User, error) {
	return change[api.User](ctx, c, users, idOrName, body)
}

// DeleteUser deletes a user, with cascade also one who owns objects, and these.
func (c *Client) DeleteUser(ctx context.Context, idOrName string, cascade bool) error {
	path, err := item(users, idOrName)
	if err != nil {
		return err
	}
	query := url.Values{}
	if cascade {
		query.Set("cascade", "true")
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: path, query: query}, nil)
	return err
}
