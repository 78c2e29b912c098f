package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// Health returns the health of the server. A degraded server is not an error.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	resp, err := c.roundTrip(ctx, call{method: http.MethodGet, path: "/healthz"})
	if err != nil {
		return api.Health{}, err
	}
	defer resp.Body.Close()
	var health api.Health
	hasHealth := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusServiceUnavailable
	if !hasHealth || !isJSON(resp.Header) {
		return health, readError(resp)
	}
	return health, decode(resp.Body, &health)
}
