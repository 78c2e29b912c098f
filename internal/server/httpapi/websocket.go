package httpapi

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/errs"
)

// pingEvery is how often an idle client must show that it is there.
const pingEvery = 30 * time.Second

// upgraded answers with a WebSocket that serve accepts. Errors of serve come
// before anything has been answered.
func (d *door) upgraded(serve func(http.ResponseWriter, *http.Request) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		err := checkUpgrade(r)
		if err == nil {
			err = serve(w, r)
		}
		if err != nil {
			d.writeProblem(w, r, err)
		}
	}}
}

// checkUpgrade refuses what is no WebSocket, and pages of other sites.
func checkUpgrade(r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return errs.New(errs.Invalid, "websocket_needed", "cannot open this: it is served over a WebSocket only")
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil // no browser
	}
	if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
		return errs.New(errs.Forbidden, "foreign_origin", "cannot open this for a page of another site")
	}
	return nil
}

// ping returns once the client does not answer any more, or ctx is done. A
// client that is behind need not answer: the answer stands in the queue, too.
// TCP tells when such a one is gone.
func ping(ctx context.Context, conn *websocket.Conn, behind func() bool) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if behind() {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, pingEvery)
		err := conn.Ping(bounded)
		cancel()
		if err != nil && !behind() {
			return
		}
	}
}
