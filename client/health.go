package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// Health returns how the server is; a server that is not well is no error.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	resp, err := c.roundTrip(ctx, call{method: http.MethodGet, path: "/healthz"})
	if err != nil {
		return api.Health{}, err
	}
	defer resp.Body.Close()
	var health api.Health
	told := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusServiceUnavailable
	if !told || !isJSON(resp.Header) {
		return health, readError(resp)
	}
	return health, decode(resp.Body, &health)
}
