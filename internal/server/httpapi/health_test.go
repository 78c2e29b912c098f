package httpapi_test

import (
	"strings"
	"testing"
)

func TestHealthCountsVMsForCallersWithAKey(t *testing.T) {
	s := newServer(t)
	for key, want := range map[string]string{goodKey: `"vm_count":3,"route_count":2`, "hk_wrong": "", "": "", otherKey: ""} {
		r := s.request(t, "GET", "/healthz", "")
		r.Header.Del("Authorization")
		if key != "" {
			r.Header.Set("X-API-Key", key)
		}
		reply := s.send(t, r)
		wantStatus(t, reply, 200)
		if got := string(reply.body); (want == "") == strings.Contains(got, "vm_count") || !strings.Contains(got, want) {
			t.Errorf("with the key %q: %s", key, got)
		}
	}
}
