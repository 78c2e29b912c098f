package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// SleepVM keeps a running VM's memory and ends its VMM.
func (c *Client) SleepVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "sleep")
}

// WakeVM lets a sleeping VM go on where it stood.
func (c *Client) WakeVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "wake")
}
