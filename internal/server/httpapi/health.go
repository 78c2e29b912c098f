package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
)

// healthPath is the only route that needs no key.
const healthPath = "/healthz"

// countTimeout bounds the wait for the database: the health of hatchd is due at once.
const countTimeout = time.Second

type healthHandler struct {
	health func(context.Context) api.Health
	counts Counts
}

// Counts count what is in scope.
type Counts interface {
	CountVMs(ctx context.Context, scope access.Scope) (int, error)
	CountRoutes(ctx context.Context, scope access.Scope) (int, error)
}

type healthOutput struct {
	Status     int
	RetryAfter string `header:"Retry-After" doc:"Seconds, if a part has failed."`
	Body       api.Health
}

func (h *healthHandler) get(ctx context.Context, _ *struct{}) (*healthOutput, error) {
	out := &healthOutput{Status: http.StatusOK, Body: h.health(ctx)}
	if out.Body.Status != "ok" {
		out.Status, out.RetryAfter = http.StatusServiceUnavailable, "5"
	}
	if owner(ctx) == "" || out.Status != http.StatusOK { // a caller without a key learns nothing of users
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	if count, err := h.counts.CountVMs(ctx, scope(ctx)); err == nil {
		out.Body.VMCount = &count
	}
	if count, err := h.counts.CountRoutes(ctx, scope(ctx)); err == nil {
		out.Body.RouteCount = &count
	}
	return out, nil
}
