package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/route"
)

// refusal is an answer of the door's own. Its texts are for visitors, who need not know
// that there are VMs: what went wrong inside is for the log and for the owner.
type refusal struct {
	status              int
	code, message, hint string
	retryAfter          time.Duration // 0: a retry does not help
}

func (r *refusal) Error() string { return r.message }

// The refusals.
var (
	unknown      = &refusal{http.StatusNotFound, "route_unknown", "nothing is served under this name", "check the name", 0}
	noTunnel     = &refusal{http.StatusMethodNotAllowed, "method_not_allowed", "CONNECT cannot be used here", "send the request without a proxy", 0}
	overChecks   = &refusal{http.StatusTooManyRequests, "too_many_passwords", "too many passwords for this page are being checked", "try again", time.Second}
	away         = &refusal{http.StatusServiceUnavailable, "unavailable", "this cannot be served now", "try again", 5 * time.Second}
	left         = &refusal{http.StatusServiceUnavailable, "request_ended", "the client has left", "", 0}
	tooMany      = &refusal{http.StatusServiceUnavailable, "too_many_requests", "too many requests are in progress", "try again", 2 * time.Second}
	overTries    = &refusal{http.StatusTooManyRequests, "too_many_tries", "too many wrong credentials came from this client", "wait before the next try", time.Second}
	unauthorized = &refusal{http.StatusUnauthorized, "unauthorized", "this page is not public", "open it by a link that was shared with you, or present the credentials that its owner gave you", 0}
	asleep       = &refusal{http.StatusServiceUnavailable, "not_running", "the server behind this name does not run", "ask its owner to start it", 30 * time.Second}
	cannotWake   = &refusal{http.StatusServiceUnavailable, "cannot_wake", "the server behind this name cannot be woken now", "try again later", 10 * time.Second}
	overQuota    = &refusal{http.StatusServiceUnavailable, "owner_quota_exceeded", "the server behind this name cannot be woken: the quota of its owner is used up", "ask its owner to stop or put to sleep another one", 30 * time.Second}
	portClosed   = &refusal{http.StatusBadGateway, "port_closed", "the server behind this name does not accept connections", "try again once its program has started", 2 * time.Second}
	badAnswer    = &refusal{http.StatusBadGateway, "bad_answer", "the server behind this name gave no valid answer", "", 0}
	lateAnswer   = &refusal{http.StatusGatewayTimeout, "late_answer", "the server behind this name did not answer in time", "", 0}
	internal     = &refusal{http.StatusInternalServerError, "internal", "this cannot be served because of an internal error", "", 0}
)

// refusalOf returns the answer for an error.
func refusalOf(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if errors.Is(err, context.Canceled) { // also while a name was looked up
		return left
	}
	switch errs.KindOf(err) {
	case errs.NotFound:
		return unknown
	case errs.Unauthenticated, errs.Forbidden:
		return unauthorized
	case errs.TooMany:
		return overChecks
	case errs.Unavailable, errs.TimedOut:
		return away
	default:
		return internal
	}
}

// statusOf returns the status of an error's answer, 0 for none.
func statusOf(err error) int {
	if err == nil {
		return 0
	}
	return refusalOf(err).status
}

// answer writes an answer of the door's own: a page for browsers, a problem for
// programs.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, v *visit, err error) {
	refused := refusalOf(err)
	if refused == internal {
		p.cfg.Log.ErrorContext(r.Context(), "request through a route failed", logkey.Error, err)
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if refused.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(refused.retryAfter.Seconds()))))
	}
	if refused.status == http.StatusUnauthorized {
		challenge(h, v.target.Auth.Mode)
	}
	p.mark(h, v)
	if p.cfg.Refuse != nil {
		p.cfg.Refuse(w, r, refused.status, refused.code)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.WriteHeader(refused.status)
		_ = page.Execute(w, map[string]any{"Status": refused.status, "Title": http.StatusText(refused.status), "Message": refused.message, "Hint": refused.hint})
		return
	}
	h.Set("Content-Type", "application/problem+json")
	w.WriteHeader(refused.status)
	_ = json.NewEncoder(w).Encode(api.Problem{ // an error means that the client has gone, as above
		Title: http.StatusText(refused.status), Status: refused.status, Detail: refused.message,
		Error: refused.message, Code: refused.code, Hint: refused.hint,
	})
}

func challenge(h http.Header, mode route.Mode) {
	if mode == route.Basic {
		h.Set("WWW-Authenticate", `Basic realm="this page", charset="UTF-8"`)
		return
	}
	h.Set("WWW-Authenticate", `Bearer realm="this page"`)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Status}} {{.Title}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222;background:#fff}h1{font-size:1.3em}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}</style>
<h1>{{.Status}} {{.Title}}</h1>
<p>{{.Message}}.{{with .Hint}}<br>{{.}}.{{end}}</p>
</html>
`))
