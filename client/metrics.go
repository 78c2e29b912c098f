package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// VMMetrics returns the current resource usage of a VM, in any state.
func (c *Client) VMMetrics(ctx context.Context, id string) (api.Metrics, error) {
	return fetch[api.Metrics](ctx, c, http.MethodGet, vms, id, "metrics")
}
