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

// pingInterval is how often an idle client must answer a ping.
const pingInterval = 30 * time.Second

// upgraded answers with a WebSocket that serve accepts. serve returns errors only
// before that.
func (d *door) upgraded(serve func(http.ResponseWriter, *http.Request) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		if err := serve(w, r); err != nil {
			d.writeProblem(w, r, err)
		}
	}}
}

// originChecked are the options of a WebSocket after checkUpgrade.
var originChecked = &websocket.AcceptOptions{InsecureSkipVerify: true}

// checkUpgrade refuses plain requests, and pages of other sites.
func (d *door) checkUpgrade(r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return errs.New(errs.Invalid, "websocket_needed", "cannot serve this: it needs a WebSocket")
	}
	origin := r.Header.Get("Origin")
	if origin == "" || d.origins != nil && d.origins.OriginAllowed(r) {
		return nil // no browser, or one whose page may call
	}
	if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
		return errs.New(errs.Forbidden, "foreign_origin", "cannot serve this to a page of another site")
	}
	return nil
}

// ping returns when the client no longer answers, or ctx is done. A blocked client
// need not answer: its answer may be queued behind other messages. TCP detects when
// such a client has disconnected.
func ping(ctx context.Context, conn *websocket.Conn, behind func() bool) {
	tick := time.NewTicker(pingInterval)
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
		bounded, cancel := context.WithTimeout(ctx, pingInterval)
		err := conn.Ping(bounded)
		cancel()
		if err != nil && !behind() {
			return
		}
	}
}
