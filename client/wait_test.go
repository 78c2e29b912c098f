package client_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/client"
)

// transport answers requests without a network, so that its time can be simulated.
type transport func(*http.Request) *http.Response

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r), r.Context().Err() }

func jsonResponse(status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
	}
}

// A wait that is longer than one request may be consists of several, which end with the
// timeout, with the condition, and when the server ends.
func TestLongWaits(t *testing.T) {
	const timedOut = `{"code": "wait_timeout", "error": "it took too long"}`
	for name, tc := range map[string]struct {
		timeout, readyAfter, serverEnds time.Duration
		steps                           []string
		err                             string // code
	}{
		"a short one":              {timeout: time.Minute, steps: []string{"1m0s"}, err: "wait_timeout"},
		"the server's default":     {steps: []string{""}, err: "wait_timeout"},
		"the longest of a request": {timeout: 10 * time.Minute, steps: []string{"10m0s"}, err: "wait_timeout"},
		"a long one":               {timeout: 25 * time.Minute, steps: []string{"10m0s", "10m0s", "5m0s"}, err: "wait_timeout"},
		"met in the second":        {timeout: time.Hour, readyAfter: 15 * time.Minute, steps: []string{"10m0s", "10m0s"}},
		"the server ends":          {timeout: time.Hour, serverEnds: 3 * time.Minute, steps: []string{"10m0s"}, err: "wait_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var steps []string
				until := func(d time.Duration) time.Duration { return d - time.Since(began) }
				c, err := client.New("http://hatchd.test", "hk_key", client.WithHTTPClient(&http.Client{Transport: transport(func(r *http.Request) *http.Response {
					given := r.URL.Query().Get("timeout")
					steps = append(steps, given)
					step, err := time.ParseDuration(given)
					if err != nil {
						step = 5 * time.Minute
					}
					switch {
					case tc.readyAfter > 0 && until(tc.readyAfter) <= step:
						<-time.After(until(tc.readyAfter))
						return jsonResponse(http.StatusOK, `{"id": "vm_a"}`)
					case tc.serverEnds > 0:
						step = until(tc.serverEnds)
					}
					<-time.After(step)
					return jsonResponse(http.StatusConflict, timedOut)
				})}))
				if err != nil {
					t.Fatal(err)
				}
				v, err := c.WaitVM(context.Background(), "vm_a", "ready", tc.timeout)
				if client.HasCode(err, "wait_timeout") != (tc.err != "") || (err == nil) != (v.ID == "vm_a") {
					t.Errorf("%+v, %v", v, err)
				}
				if !slices.Equal(steps, tc.steps) {
					t.Errorf("the waits are %v, want %v", steps, tc.steps)
				}
				if took := time.Since(began); tc.timeout > 0 && took > tc.timeout {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}
