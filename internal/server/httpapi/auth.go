package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
)

// authenticate refuses callers without a valid key, for unknown routes too, so that
// only callers with a key learn which routes exist.
func (d *door) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.open[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		if err := d.admit(r); err != nil {
			challenge(w, r)
			d.writeProblem(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// admit authenticates the request, for the handlers and for the event log.
func (d *door) admit(r *http.Request) error {
	secret := presentedKey(r)
	if secret == "" {
		return errs.New(errs.Unauthenticated, "key_missing", "cannot serve this without an API key").
			WithHint("send Authorization: Bearer YOUR_API_KEY")
	}
	principal, err := d.access.Authenticate(r.Context(), secret)
	if err != nil {
		return err
	}
	c := callerOf(r.Context())
	c.Principal = principal
	cause := event.Cause{
		Actor:     event.Actor{Kind: event.Key, ID: principal.KeyID, Name: principal.KeyName},
		RequestID: c.requestID,
	}
	*r = *r.WithContext(event.WithCause(r.Context(), cause)) // in place: observe reads r afterwards
	return nil
}

// authorize refuses callers that lack the right that a route needs.
func (d *door) authorize(needs access.Right) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		if err := checkRight(hc.Context(), needs); err != nil {
			r, w := humago.Unwrap(hc)
			d.writeProblem(w, r, err)
			return
		}
		next(hc)
	}
}

func checkRight(ctx context.Context, needs access.Right) error {
	if callerOf(ctx).Rights.Include(needs) {
		return nil
	}
	return errs.New(errs.Forbidden, "forbidden", "cannot do this with this API key: it lacks the right %q", needs).
		WithHint("use a key with the right %q", needs)
}

// presentedKey returns the request's key, or "".
func presentedKey(r *http.Request) string {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, secret, _ := strings.Cut(header, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(secret)
		}
		if _, password, ok := r.BasicAuth(); ok && isForReading(r.URL.Path) {
			return password
		}
		return ""
	}
	return r.Header.Get("X-API-Key")
}

// challenge says how to authenticate. It offers Basic only for the documentation:
// a browser sends a password again by itself, and must not do so to routes that
// change anything.
func challenge(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("WWW-Authenticate", `Bearer realm="hatch"`)
	if isForReading(r.URL.Path) {
		w.Header().Add("WWW-Authenticate", `Basic realm="hatch: any user, an API key as password", charset="UTF-8"`)
	}
}
