package httpapi_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/vm"
)

func TestLabelConditions(t *testing.T) {
	s := newServer(t)
	s.vms.next = "cursor"
	reply := s.call(t, "GET", "/vms?label=a%3Db&label=c&label=d%21%3De&label=f%3Dg%21%3Dh&label=i%21", "")
	wantStatus(t, reply, 200)
	f := s.vms.filter
	if !maps.Equal(f.Labels, map[string]string{"a": "b", "f": "g!=h"}) || !slices.Equal(f.HasLabels, []string{"c", "i!"}) || !slices.Equal(f.NotLabels, []vm.Label{{Key: "d", Value: "e"}}) {
		t.Errorf("filtered by %+v", f)
	}
	if link := reply.Header.Get("Link"); strings.Count(link, "label=") != 5 {
		t.Errorf("the next page is %s", link)
	}
}

// TestEveryListHasPages asks each list for a page of one, and for one after nonsense.
func TestEveryListHasPages(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/vms", "/snapshots", "/vms/" + knownVM + "/snapshots", "/vms/" + knownVM + "/execs", "/images", "/templates", "/webhooks", "/keys", "/events", "/webhooks/whk_1/deliveries"} {
		wantStatus(t, s.call(t, "GET", path+"?limit=1", ""), 200)
		if path == "/vms" || strings.HasPrefix(path, "/webhooks/") { // their services check the cursor
			continue
		}
		if reply := s.call(t, "GET", path+"?limit=1&after=nonsense", ""); reply.StatusCode != 400 || reply.problem(t).Code != "invalid_after" {
			t.Errorf("%s: %d %s", path, reply.StatusCode, reply.body)
		}
	}
}
