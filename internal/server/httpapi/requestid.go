package httpapi

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// caller is the request's id and its authenticated caller. Only the goroutine that
// serves the request uses it.
type caller struct {
	requestID string
	address   netip.Addr // of the client, zero if it is not on the network
	problem   *problem   // the answer, if it is one
	pattern   string     // of the route, once the caller is admitted; see match
	access.Principal
}

type callerKey struct{}

// callerOf returns the request's caller.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{}
}

// owner returns the user that objects are created for.
func owner(ctx context.Context) string { return callerOf(ctx).OwnerID }

// scope returns which objects the caller may see.
func scope(ctx context.Context) access.Scope { return callerOf(ctx).Scope() }

// manager returns which images and templates the caller may see, and which of these it may
// change.
func manager(ctx context.Context) access.Scope { return callerOf(ctx).Manager() }

var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// match notes which route serves a request, for all that depends on it.
func (d *door) match(mux *http.ServeMux, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, callerOf(r.Context()).pattern = mux.Handler(r)
		next.ServeHTTP(w, r)
	})
}

// identify gives every request an id, the client's own if it is valid, and sets the
// headers that all answers have.
func (d *door) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &caller{requestID: r.Header.Get("X-Request-Id"), address: admission.AddressOf(r.RemoteAddr)}
		if !saneRequestID.MatchString(c.requestID) {
			c.requestID = "req_" + rand.Text()[:16]
		}
		h := w.Header()
		h.Set("X-Request-Id", c.requestID)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if r.TLS != nil && d.hsts > 0 {
			h.Set("Strict-Transport-Security", fmt.Sprintf("max-age=%d", int(d.hsts.Seconds())))
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}
