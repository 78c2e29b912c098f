package httpapi

import (
	"net/http"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
)

// authenticate lets callers with a key through, to unknown routes too, so that
// nobody learns the routes without one.
func (d *door) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == healthPath {
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

// admit notes whose key the request carries, for us and for the log of events.
func (d *door) admit(r *http.Request) error {
	secret := presentedKey(r)
	if secret == "" {
		return errs.New(errs.Unauthenticated, "key_missing", "cannot serve this without an API key").
			WithHint("send Authorization: Bearer YOUR_API_KEY")
	}
	principal, err := d.Access.Authenticate(r.Context(), secret)
	if err != nil {
		return err
	}
	c := callerOf(r.Context())
	c.Principal = principal
	cause := event.Cause{
		Actor:     event.Actor{Kind: event.Key, ID: principal.KeyID, Name: principal.KeyName},
		RequestID: c.requestID,
	}
	*r = *r.WithContext(event.WithCause(r.Context(), cause)) // in place: observe looks at r afterwards
	return nil
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

// challenge tells how to authenticate. A browser asks its user for a password
// only where there is something to read: it would go on to send the password by
// itself, and must not do so to routes that change anything.
func challenge(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("WWW-Authenticate", `Bearer realm="hatch"`)
	if isForReading(r.URL.Path) {
		w.Header().Add("WWW-Authenticate", `Basic realm="hatch: any user, an API key as password", charset="UTF-8"`)
	}
}
