package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
)

// e2bHandler tells where another door is.
type e2bHandler struct {
	door func() (api.E2B, bool)
}

func (h *e2bHandler) get(context.Context, *struct{}) (*answer[api.E2B], error) {
	if h.door != nil {
		if at, ok := h.door(); ok {
			return &answer[api.E2B]{Body: at}, nil
		}
	}
	return nil, errs.New(errs.Unsupported, "e2b_off", "this server does not serve the client libraries of E2B").
		WithHint("set HATCH_E2B_ADDR (e2b_addr in hatchd.yaml), such as 127.0.0.1:3000, and restart hatchd")
}
