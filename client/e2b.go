package client

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// E2B returns where the client libraries of E2B reach the server.
func (c *Client) E2B(ctx context.Context) (at api.E2B, err error) {
	_, err = c.do(ctx, call{method: http.MethodGet, path: "/e2b"}, &at)
	return at, err
}
