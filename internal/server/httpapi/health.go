package httpapi

import (
	"context"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// healthPath is the only route that needs no key.
const healthPath = "/healthz"

type healthOutput struct {
	Status int
	Body   api.Health
}

func (d *door) health(ctx context.Context, _ *struct{}) (*healthOutput, error) {
	out := &healthOutput{Status: http.StatusOK, Body: d.Health(ctx)}
	if out.Body.Status != "ok" {
		out.Status = http.StatusServiceUnavailable
	}
	return out, nil
}
