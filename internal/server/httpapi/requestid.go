package httpapi

import (
	"context"
	"crypto/rand"
	"net/http"
	"regexp"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// caller is what the door knows of one request, from its first to its last
// layer. Only the goroutine that serves the request touches it.
type caller struct {
	requestID string
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

// owner returns the account whose objects the request is about.
func owner(ctx context.Context) string { return callerOf(ctx).OwnerID }

var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// identify gives every request an id, the client's own when it is sane, and
// every answer the headers that all answers have.
func (d *door) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &caller{requestID: r.Header.Get("X-Request-Id")}
		if !saneRequestID.MatchString(c.requestID) {
			c.requestID = "req_" + rand.Text()[:16]
		}
		h := w.Header()
		h.Set("X-Request-Id", c.requestID)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if r.ContentLength != 0 { // until readBody has it: a refused body is drained, too
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}
