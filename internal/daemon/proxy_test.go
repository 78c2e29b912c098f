package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake"
)

// get sends a request to the daemon's proxy.
func (w *world) get(t *testing.T, host, key string) (*http.Response, string) {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "proxy.addr"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+strings.TrimSpace(string(addr))+"/page", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("X-API-Key", key)
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp, string(body)
}

// A request to a VM's name reaches its port, also while it sleeps, and again after a
// restart of the daemon.
func TestTheProxyLeadsIntoGuests(t *testing.T) {
	guest := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "the guest has %s, key %q", r.URL.Path, r.Header.Get("X-API-Key"))
	}))
	defer guest.Close()
	w := &world{dir: t.TempDir(), onHost: func(h *daemon.Host) {
		h.Guests.(*fake.Guests).DialPort = func(ctx context.Context, port int) (net.Conn, error) {
			if port != 3000 {
				return nil, fmt.Errorf("port %d is closed", port)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", guest.Listener.Addr().String())
		}
	}}
	w.start(t)
	no := false
	v, err := w.CreateVM(t.Context(), api.CreateVM{Name: "web", MachineSpec: api.MachineSpec{EnableNetwork: &no}}, client.CreateOptions{Wait: "running"})
	if err != nil {
		t.Fatal(err)
	}
	want := `the guest has /page, key ""`
	require := func(host, key string, status int, body string) http.Header {
		t.Helper()
		resp, got := w.get(t, host, key)
		if resp.StatusCode != status || body != "" && got != body {
			t.Errorf("%s: got %d, %s", host, resp.StatusCode, got)
		}
		return resp.Header
	}
	require("3000-web.localhost", key, http.StatusOK, want)
	require("3000-"+strings.ReplaceAll(v.ID, "_", "-")+".localhost:80", key, http.StatusOK, want)
	require("3000-web.localhost", "another key of this test", http.StatusNotFound, "")
	require("3001-web.localhost", key, http.StatusBadGateway, "")
	require("web.localhost", key, http.StatusNotFound, "")

	for _, restart := range []bool{false, true} {
		if _, err := w.SleepVM(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
		if restart {
			if err := w.end(); err != nil {
				t.Fatal(err)
			}
			w.start(t)
		}
		if h := require("3000-web.localhost", key, http.StatusOK, want); !strings.HasPrefix(h.Get("Server-Timing"), "wake;dur=") {
			t.Errorf("Server-Timing %q", h.Get("Server-Timing"))
		}
		if now, err := w.GetVM(t.Context(), v.ID); err != nil || now.State != api.StateRunning {
			t.Errorf("the VM is %s, %v", now.State, err)
		}
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "proxy.addr")); !os.IsNotExist(err) {
		t.Errorf("the file of the address: %v", err)
	}
}
