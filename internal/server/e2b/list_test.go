package e2b

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// TestMetadataFilter has the measured form, which is encoded three times.
func TestMetadataFilter(t *testing.T) {
	r := httptest.NewRequest("GET", "/v2/sandboxes?metadata=a%252520b%3Dx%25253D1%252526y", nil)
	got, err := metadataOf(r.URL.Query().Get("metadata"))
	if err != nil || len(got) != 1 || got["a b"] != "x=1&y" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestLists(t *testing.T) {
	w := newWorld()
	for i := range 7 {
		must[sandbox](t, w, 201, "POST", "/v2/sandboxes", fmt.Sprintf(`{"templateID":"web","metadata":{"n":"%d","odd":"%d"}}`, i, i%2))
	}
	must[any](t, w, 204, "POST", "/sandboxes/i000000000003/pause", "")
	dead := w.vms.all["vm_000000000004"]
	dead.State = vm.Failed
	w.vms.put(dead)
	late := w.vms.all["vm_000000000005"]
	late.Expiry.At = time.Now().Add(-time.Second)
	w.vms.put(late)
	other := w.vms.all["vm_000000000007"]
	other.Sandbox = nil
	w.vms.put(other)
	for query, want := range map[string]string{
		"":                          "6 3 2 1",
		"?state=running":            "6 2 1",
		"?state=running%2Cpaused":   "6 3 2 1",
		"?state=paused":             "3",
		"?order=asc":                "1 2 3 6",
		"?metadata=odd%3D1":         "6 2",
		"?metadata=odd%3D1%26n%3D5": "6",
		"?metadata=none%3D1":        "",
		"?template=web":             "6 3 2 1",
		"?template=tpl_1":           "6 3 2 1",
		"?template=base":            "",
		"?startedAfter=" + w.vms.all["vm_000000000003"].CreatedAt.Format(time.RFC3339Nano): "6 3",
		"?startedAfter=2099-01-01T00:00:00Z":                                               "",
	} {
		if got := numbers(must[[]listed](t, w, 200, "GET", "/v2/sandboxes"+query, "")); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if got := numbers(must[[]listed](t, w, 200, "GET", "/sandboxes", "")); got != "6 2 1" {
		t.Errorf("the first version lists %q", got)
	}
}

func numbers(all []listed) string {
	var out []string
	for _, one := range all {
		out = append(out, one.SandboxID[len(one.SandboxID)-1:])
	}
	return strings.Join(out, " ")
}

// TestPages reads all pages of 250 sandboxes, in both orders, while others are made.
func TestPages(t *testing.T) {
	for _, order := range []string{"desc", "asc"} {
		w := newWorld()
		for range 250 {
			must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest)
		}
		seen, pages := map[string]bool{}, 0
		for token := ""; ; pages++ {
			status, text, h := w.send("GET", "/v2/sandboxes?limit=100&order="+order+"&nextToken="+token, "")
			var page []listed
			if err := json.Unmarshal([]byte(text), &page); err != nil || status != 200 {
				t.Fatalf("%d %s", status, text)
			}
			for _, one := range page {
				if seen[one.SandboxID] {
					t.Fatalf("%s: %s is on two pages", order, one.SandboxID)
				}
				seen[one.SandboxID] = true
			}
			if h.Get("X-Total-Running") == "" {
				t.Error("the number of running ones is missing")
			}
			if token = h.Get(nextField); token == "" {
				break
			}
			if order == "desc" {
				must[sandbox](t, w, 201, "POST", "/v2/sandboxes", smallest)
			}
		}
		if len(seen) != 250 || pages != 2 {
			t.Errorf("%s: %d sandboxes on %d pages", order, len(seen), pages+1)
		}
	}
}
