package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

// Each class has its own limit, and each key; the headers say how it stands.
func TestRateLimits(t *testing.T) {
	s := newLimitedServer(t, httpapi.Limits{Rates: map[admission.Class]admission.Rate{
		admission.Creates: {PerSecond: 0.01, Burst: 2}, admission.Writes: {PerSecond: 0.02, Burst: 1},
	}})
	create := func() reply { return s.call(t, "POST", "/webhooks", `{"url":"https://example.com","events":["*"]}`) }
	for _, want := range []string{`"create";r=1;t=100`, `"create";r=0;t=200`} {
		r := create()
		wantStatus(t, r, 201)
		if got := r.Header.Get("RateLimit"); got != want || r.Header.Get("RateLimit-Policy") != `"create";q=2;w=200` {
			t.Errorf("RateLimit is %s, want %s; RateLimit-Policy is %s", got, want, r.Header.Get("RateLimit-Policy"))
		}
	}
	r := create()
	wantStatus(t, r, http.StatusTooManyRequests)
	if p := r.problem(t); p.Code != "rate_limited" || r.Header.Get("Retry-After") != "100" || p.Hint == "" {
		t.Errorf("refused with %+v, Retry-After %s", p, r.Header.Get("Retry-After"))
	}
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/stop", ""), 200)
	wantStatus(t, s.call(t, "DELETE", "/webhooks/whk_1", ""), http.StatusTooManyRequests)
	for range 3 {
		if r := s.call(t, "GET", "/vms", ""); r.StatusCode != 200 || r.Header.Get("RateLimit") != "" {
			t.Errorf("a class without a limit: %d, RateLimit %s", r.StatusCode, r.Header.Get("RateLimit"))
		}
	}
	other := s.request(t, "POST", "/webhooks", `{"url":"https://example.com","events":["*"]}`)
	other.Header.Set("Authorization", "Bearer "+otherKey)
	if reply := s.send(t, other); reply.StatusCode == http.StatusTooManyRequests {
		t.Error("another key is refused")
	}
}
