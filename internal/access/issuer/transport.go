package issuer

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/time/rate"
)

// Bounds on questions to the issuer. Clients cause them by tokens with unknown keys.
const (
	askTimeout  = 10 * time.Second
	askInterval = time.Second
	askBurst    = 10
	maxAnswer   = 1 << 20 // bytes
)

// errSilent means that the issuer has not answered, or not what was asked for.
var errSilent = errors.New("the issuer does not answer")

// bounded limits how often the issuer is asked, and what is read of its answers.
type bounded struct {
	next  http.RoundTripper
	limit *rate.Limiter
}

func newBounded(next http.RoundTripper) bounded {
	return bounded{next, rate.NewLimiter(rate.Every(askInterval), askBurst)}
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if !b.limit.Allow() {
		return nil, fmt.Errorf("%w: it was asked too often", errSilent)
	}
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSilent, err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close() // it is not read
		return nil, fmt.Errorf("%w: %s", errSilent, resp.Status)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}
