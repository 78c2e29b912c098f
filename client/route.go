package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

const routes = "/routes"

// CreateRoute makes a host name that leads to a port of a VM.
func (c *Client) CreateRoute(ctx context.Context, vmID string, body api.CreateRoute) (api.Route, error) {
	path, err := item(vms, vmID, "routes")
	if err != nil {
		return api.Route{}, err
	}
	return post[api.Route](ctx, c, path, body)
}

// ListRoutes returns all routes, newest first.
func (c *Client) ListRoutes(ctx context.Context) ([]api.Route, error) {
	return list[api.Route](ctx, c, routes, nil)
}

// RoutesOf returns the routes to one VM, newest first.
func (c *Client) RoutesOf(ctx context.Context, vmID string) ([]api.Route, error) {
	path, err := item(vms, vmID, "routes")
	if err != nil {
		return nil, err
	}
	return list[api.Route](ctx, c, path, nil)
}

// GetRoute returns one route.
func (c *Client) GetRoute(ctx context.Context, id string) (api.Route, error) {
	return fetch[api.Route](ctx, c, http.MethodGet, routes, id)
}

// UpdateRoute changes a route. Nil fields do not change.
func (c *Client) UpdateRoute(ctx context.Context, id string, body api.UpdateRoute) (api.Route, error) {
	return change[api.Route](ctx, c, routes, id, body)
}

// DeleteRoute deletes a route.
func (c *Client) DeleteRoute(ctx context.Context, id string) error {
	return c.remove(ctx, routes, id)
}

// VerifyRoute looks for the proof of a route's domain in the DNS.
func (c *Client) VerifyRoute(ctx context.Context, id string) (api.Route, error) {
	return fetch[api.Route](ctx, c, http.MethodPost, routes, id, "verify")
}

// ShareVM returns a signed link to a port of a VM.
func (c *Client) ShareVM(ctx context.Context, vmID string, body api.ShareVM) (api.Share, error) {
	path, err := item(vms, vmID, "share")
	if err != nil {
		return api.Share{}, err
	}
	return post[api.Share](ctx, c, path, body)
}

// EndShares ends all signed links to a VM.
func (c *Client) EndShares(ctx context.Context, vmID string) error {
	_, err := fetch[api.Deleted](ctx, c, http.MethodDelete, vms, vmID, "share")
	return err
}
