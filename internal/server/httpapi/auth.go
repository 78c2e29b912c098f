package httpapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// authenticate refuses callers without a valid key, for unknown routes too, so that
// only callers with a key learn which routes exist.
func (d *door) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.open[r.URL.Path] {
			_ = d.admit(r) // a caller whose key is wrong is one without a key
			next.ServeHTTP(w, r)
			return
		}
		if err := d.admit(r); err != nil {
			if errs.Is(err, errs.Unauthenticated) {
				challenge(w, r)
			}
			d.writeProblem(w, r, err)
			d.recordRefusedKey(r)
			return
		}
		watched, stop := d.access.Watch(r.Context(), callerOf(r.Context()).Principal)
		defer stop()
		*r = *r.WithContext(watched) // in place: observe reads r afterwards
		next.ServeHTTP(w, r)
	})
}

// admit authenticates the request, for the handlers and for the event log.
func (d *door) admit(r *http.Request) error {
	principal, by, known, err := d.ambient(r)
	if err == nil && !known {
		principal, by, err = d.keyed(r)
	}
	if err != nil {
		return err
	}
	c := callerOf(r.Context())
	c.Principal = principal
	*r = *r.WithContext(event.WithCause(r.Context(), event.Cause{Actor: by, RequestID: c.requestID})) // in place: observe reads r afterwards
	return nil
}

// keyed returns the caller that the request's key, or its token, belongs to.
func (d *door) keyed(r *http.Request) (access.Principal, event.Actor, error) {
	secret := presentedKey(r)
	if secret == "" {
		return access.Principal{}, event.Actor{}, errs.New(errs.Unauthenticated, "key_missing", "cannot serve this without an API key").
			WithHint("send Authorization: Bearer YOUR_API_KEY")
	}
	caller, err := d.checkKey(r, secret)
	return caller, event.ActorOf(caller), err
}

// checkKey authenticates a caller by its key, and bounds how often one client tries
// wrong keys.
//
// A key that has authenticated before is always accepted, so that a client that tries
// keys locks out no other at the same address: keys are too long to be guessed, what
// must be bounded is the work.
func (d *door) checkKey(r *http.Request, secret string) (caller access.Principal, err error) {
	from := callerOf(r.Context()).address
	if caller, known := d.access.Known(secret, from); known {
		return caller, nil
	}
	wait, err := d.tries.Attempt(admission.ClientAt(from), func() (err error) {
		caller, err = d.access.Authenticate(r.Context(), secret, from)
		return err
	})
	if wait > 0 {
		return access.Principal{}, tooManyTries(wait)
	}
	return caller, err
}

func tooManyTries(wait time.Duration) error {
	return errs.New(errs.TooMany, "too_many_tries", "cannot check this API key: too many wrong keys came from this client").
		WithHint("wait before the next try; check the key").WithRetryAfter(wait)
}

// share bounds the requests of one user that are in progress, so that they cannot
// take all connections: a stream or a wait may last long.
func (d *door) share(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ownerID := owner(r.Context()); ownerID != "" && !d.open[r.URL.Path] {
			keep, short := d.requests.Take(ownerID, 1)
			if short != admission.Enough {
				d.writeProblem(w, r, errs.New(errs.TooMany, "too_many_requests", "cannot serve this: the user has too many requests in progress").
					WithHint("end streams and waits that are not needed"))
				return
			}
			defer keep(0)
		}
		next.ServeHTTP(w, r)
	})
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
	return errs.New(errs.Forbidden, "forbidden", "cannot do this with this API key: it lacks the scope %q", needs).
		WithHint("use a key with the scope %q", needs)
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
