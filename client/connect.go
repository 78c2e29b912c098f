package client

import (
	"context"

	"github.com/hatchvm/hatch/api"
)

// Connect signs a public key for a login to a VM over SSH within the next minutes. A
// sleeping VM is not woken: the connection to its SSH port does that.
func (c *Client) Connect(ctx context.Context, id string, body api.Connect) (api.Connection, error) {
	path, err := item(vms, id, "connect")
	if err != nil {
		return api.Connection{}, err
	}
	return post[api.Connection](ctx, c, path, body)
}
