package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

const templates = "/templates"

// CreateTemplate stores defaults for new VMs.
func (c *Client) CreateTemplate(ctx context.Context, body api.CreateTemplate) (api.Template, error) {
	body.UserData, body.UserDataEncoding = encodeUserData(body.UserData, body.UserDataEncoding)
	return post[api.Template](ctx, c, templates, body)
}

// ListTemplates returns all templates.
func (c *Client) ListTemplates(ctx context.Context) ([]api.Template, error) {
	return list[api.Template](ctx, c, templates, nil)
}

// GetTemplate returns one template.
func (c *Client) GetTemplate(ctx context.Context, id string) (api.Template, error) {
	return fetch[api.Template](ctx, c, http.MethodGet, templates, id)
}

// UpdateTemplate changes a template. Nil fields do not change, and VMs created with it
// are not affected.
func (c *Client) UpdateTemplate(ctx context.Context, id string, body api.UpdateTemplate) (api.Template, error) {
	body.UserData, body.UserDataEncoding = encodeUserData(body.UserData, body.UserDataEncoding)
	return change[api.Template](ctx, c, templates, id, body)
}

// DeleteTemplate deletes a template. VMs created with it are not affected.
func (c *Client) DeleteTemplate(ctx context.Context, id string) error {
	return c.remove(ctx, templates, id)
}
