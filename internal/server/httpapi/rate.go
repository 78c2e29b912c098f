package httpapi

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// limitRate bounds how often a key calls, apart for requests that read, change and create.
// The headers are those of draft-ietf-httpapi-ratelimit-headers-10: RateLimit-Policy has
// the class of the request, its burst (q) and the seconds in which that fills up (w);
// RateLimit what is left (r), and the seconds until all of it is (t).
func (d *door) limitRate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r.Context())
		if c.OwnerID == "" || d.open[r.URL.Path] {
			next.ServeHTTP(w, r)
			return
		}
		class := d.classOf(r)
		standing := d.rates.Count(cmp.Or(c.KeyID, c.OwnerID), class)
		if limit := standing.Limit; limit.Burst > 0 {
			w.Header().Set("RateLimit-Policy", fmt.Sprintf("%q;q=%d;w=%d", string(class), limit.Burst, wholeSeconds(limit.Window())))
			w.Header().Set("RateLimit", fmt.Sprintf("%q;r=%d;t=%d", string(class), standing.Left, wholeSeconds(standing.Full)))
		}
		if standing.Wait > 0 {
			d.writeProblem(w, r, errs.New(errs.TooMany, "rate_limited", "cannot serve this now: the key sends too many requests of the class %q: %d at once and %g a second are allowed", class, standing.Limit.Burst, standing.Limit.PerSecond).
				WithHint("wait as long as Retry-After says; the RateLimit headers tell how many requests are left").WithRetryAfter(standing.Wait))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func wholeSeconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// classOf returns the class of a request by its route.
func (d *door) classOf(r *http.Request) admission.Class {
	route, known := d.served[callerOf(r.Context()).pattern]
	switch {
	case !known || r.Method == get || r.Method == http.MethodHead:
		return admission.Reads
	case route.status == http.StatusCreated || route.status == http.StatusAccepted:
		return admission.Creates
	}
	return admission.Writes
}
