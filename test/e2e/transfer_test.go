//go:build system

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/test/payload"
)

// long is whether rows take minutes that take seconds otherwise.
var long = os.Getenv("HATCH_TEST_LONG") != ""

// grownLimit is what hatchd's memory may grow by while a body of any size passes, in MiB.
const grownLimit = 32

// testLargeBodies sends a body up and down that is several times what hatchd may keep of it.
func (s *service) testLargeBodies(t *testing.T) {
	size := int64(128 << 20)
	if long {
		size = 2 << 30
	}
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	sum := payload.SumOf(size)
	rate := func(what string, began time.Time) {
		t.Logf("%d MiB %s: %.0f MiB/s", size>>20, what, float64(size>>20)/time.Since(began).Seconds())
	}
	before := s.resetPeak(t)

	began := time.Now()
	up, err := s.fetch(ctx, http.MethodPut, "/sink", payload.Reader(size))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(up.Body)
	_ = up.Body.Close()
	if want := fmt.Sprintf("%d %x", size, sum); err != nil || string(got) != want {
		t.Errorf("up: the guest counts %s, want %s, %v", got, want, err)
	}
	rate("up", began)

	began = time.Now()
	down, err := s.fetch(ctx, http.MethodGet, fmt.Sprintf("/source?bytes=%d", size), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer down.Body.Close()
	read := payload.Sum()
	if n, err := io.Copy(read, down.Body); err != nil || n != size || read.Sum64() != sum {
		t.Errorf("down: %d bytes with the sum %x, want %x, %v", n, read.Sum64(), sum, err)
	}
	rate("down", began)

	after := s.peakMemory(t)
	t.Logf("hatchd has %d MiB before, and %d MiB at most meanwhile", before, after)
	if after-before > grownLimit {
		t.Errorf("hatchd has grown by %d MiB", after-before)
	}
}

// resetPeak has peakMemory begin anew, and returns it.
func (s *service) resetPeak(t *testing.T) int {
	t.Helper()
	const peak = "5" // see proc(5), clear_refs
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.daemon.PID()), []byte(peak), 0); err != nil {
		t.Fatal(err)
	}
	return s.peakMemory(t)
}

// testLoad sends requests over many connections at once. All must succeed; how long they
// take is only shown.
func (s *service) testLoad(t *testing.T) {
	const conns, requests = 64, 1000
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	took := make([]time.Duration, requests)
	failed := make([]error, requests)
	transport := &http.Transport{MaxIdleConnsPerHost: conns}
	defer transport.CloseIdleConnections()
	var next atomic.Int64
	var workers sync.WaitGroup
	began := time.Now()
	for range conns {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < requests; i = next.Add(1) - 1 {
				sent := time.Now()
				failed[i] = s.wellBy(ctx, transport)
				took[i] = time.Since(sent)
			}
		})
	}
	workers.Wait()
	all := time.Since(began)
	count := 0
	for _, err := range failed {
		if err != nil {
			if count++; count < 5 {
				t.Errorf("a request failed: %v", err)
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d requests over %d connections: %.0f a second, %d failed; p50 %s, p99 %s, max %s", requests, conns,
		requests/all.Seconds(), count, took[requests/2].Round(time.Millisecond), took[requests*99/100].Round(time.Millisecond), took[requests-1].Round(time.Millisecond))
}

func (s *service) wellBy(ctx context.Context, through http.RoundTripper) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+proxyAddr+"/health", nil)
	if err != nil {
		return err
	}
	r.Host = "service.localhost"
	resp, err := through.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return requireWell(resp)
}
