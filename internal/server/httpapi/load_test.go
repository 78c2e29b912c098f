package httpapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// FuzzCreateVM sends any bytes as a body: the answer is 201 or a refusal, and
// always in the documented form.
func FuzzCreateVM(f *testing.F) {
	s := newServer(f)
	for _, seed := range []string{`{}`, `{"vcpu_count":1e2}`, `{"labels":{"":null}}`, `{"guest_ip":"1.2.3.4","guest_mac":"02:FC:00:00:00:0A"}`, "\x00", `[[[[`, `{"a":1,"A":2}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		reply := s.call(t, "POST", "/vms", string(body))
		if reply.StatusCode != 201 && reply.StatusCode != 400 {
			t.Fatalf("status %d: %s", reply.StatusCode, reply.body)
		}
		if !json.Valid(reply.body) {
			t.Fatalf("not JSON: %q", reply.body)
		}
	})
}

// BenchmarkListVMs asks for 1,000 VMs over real HTTP.
func BenchmarkListVMs(b *testing.B) {
	s := newServer(b)
	for i := range 1000 {
		v := sampleVM(fmt.Sprintf("vm_%012d", i))
		v.Revision = 1
		s.vms.all = append(s.vms.all, v)
	}
	s.contract = nil
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		began := time.Now()
		resp, err := http.DefaultClient.Do(s.request(b, "GET", "/vms", ""))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
