package e2b

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestPlaces has one request of each measured client, and those that are easy to confuse.
func TestPlaces(t *testing.T) {
	d := newWorld().Door
	const id = "i000000000001"
	for _, c := range []struct {
		target  string
		headers map[string]string
		want    place
	}{
		{"49983-" + id + ".box.example/files", nil, place{atAgent, id, 49983}},
		{"49983-" + id + "-hatch.box.example:3443/health", nil, place{atAgent, id, 49983}}, // 1.x
		{"3000-" + id + ".BOX.example./sandboxes", nil, place{atPort, id, 3000}},
		{"99999-" + id + ".box.example/", nil, place{atPort, id, 0}},
		{"api.box.example/health", map[string]string{sandboxHeader: id}, place{kind: atControl}},
		{"api.box.example:3443/sandboxes/x/connect", map[string]string{sandboxHeader: id, portHeader: "49983"}, place{kind: atControl}}, // 2.21
		{"127.0.0.1:3000/v2/sandboxes/x/connect", map[string]string{sandboxHeader: id}, place{kind: atControl}},
		{"127.0.0.1:3000/v3/templates", nil, place{kind: atControl}},
		{"127.0.0.1:3000/process.Process/Start", map[string]string{sandboxHeader: id, portHeader: "49983"}, place{atAgent, id, 49983}},
		{"127.0.0.1:3000/health", map[string]string{sandboxHeader: id + "-hatch"}, place{atAgent, id, 49983}},
		{"127.0.0.1:3000/health", map[string]string{sandboxHeader: id, portHeader: "49999"}, place{atPort, id, 49999}},
		{"127.0.0.1:3000/execute", map[string]string{sandboxHeader: id, portHeader: "49999"}, place{atPort, id, 49999}},
		{"127.0.0.1:3000/execute", map[string]string{sandboxHeader: id, portHeader: "x"}, place{atPort, id, 0}},
		{"127.0.0.1:3000/files?signature=v1_x", nil, place{kind: nowhere}},
		{"127.0.0.1:3000/nothing", nil, place{kind: atControl}},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://"+c.target, nil)
		for name, value := range c.headers {
			r.Header.Set(name, value)
		}
		if got := d.placeOf(r); got != c.want {
			t.Errorf("%s %v: %+v, want %+v", c.target, c.headers, got, c.want)
		}
	}
}

// TestClaims has paths that Hatch's own API has at the same host, and others.
func TestClaims(t *testing.T) {
	for _, c := range []struct {
		path, key string
		want      bool
	}{
		{"/sandboxes", "hatch_x", true},
		{"/v2/templates", "hatch_x", true},
		{"/templates", "hatch_x", false},
		{"/templates", key, true},
		{"/templates/tpl_1", key, true},
		{"/snapshots", "", false},
		{"/snapshots", key, true},
		{"/vms", key, false},
		{"/healthz", key, false},
		{"/v2", key, false},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://api.box.example"+c.path, nil)
		r.Header.Set(keyHeader, c.key)
		if got := Claims(r); got != c.want {
			t.Errorf("%s with %q: %v", c.path, c.key, got)
		}
	}
}

func TestSandboxIDs(t *testing.T) {
	if got := vmIDOf(sandboxID("vm_abc123def456")); got != "vm_abc123def456" {
		t.Errorf("back is %q", got)
	}
	for _, bad := range []string{"", "i", "vm_abc123def456", "iabc123def45", "iabc123def4567", "iABC123def456", "jabc123def456", "i../../etc/pa"} {
		if got := vmIDOf(bad); got != "" {
			t.Errorf("%q is %q", bad, got)
		}
	}
	if !IsSandboxHost("3000-iabc123def456.box.example:3443") || IsSandboxHost("3000-web.box.example") {
		t.Error("host names of sandboxes are not told from others")
	}
}
