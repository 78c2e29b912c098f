//go:build system

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/payload"
)

// proxyAddr is where the sandbox's hatchd serves routes, by default.
const proxyAddr = "127.0.0.1:9090"

// direct uses no proxy of the environment.
var direct = &http.Client{Transport: &http.Transport{}}

// webAnswer is the answer to a request.
type webAnswer struct {
	status int
	header http.Header
	body   []byte
}

// visit sends a request to a port of a VM by its name.
func (w *world) visit(ctx context.Context, host, method, path string, body io.Reader) (webAnswer, error) {
	key, err := os.ReadFile(w.data("admin.key"))
	if err != nil {
		return webAnswer{}, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+proxyAddr+path, body)
	if err != nil {
		return webAnswer{}, err
	}
	r.Host = host
	r.Header.Set("X-API-Key", strings.TrimSpace(string(key)))
	resp, err := direct.Do(r)
	if err != nil {
		return webAnswer{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return webAnswer{resp.StatusCode, resp.Header, got}, err
}

// requireWell checks the answer to a request for /health.
func requireWell(resp *http.Response) error {
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(text) != "well\n") {
		err = fmt.Errorf("%d: %s", resp.StatusCode, text)
	}
	return err
}

// testHTTP reaches the guests by implicit names, by the network and through the agent.
func (s *service) testHTTP(t *testing.T) {
	for network, v := range map[bool]api.VM{true: s.vm, false: s.inner} {
		t.Run(fmt.Sprintf("network %v", network), func(t *testing.T) { s.requireHTTP(t, v) })
	}
}

// implicit returns the name of a port that no route has.
func implicit(v api.VM, port int) string {
	return fmt.Sprintf("%d-%s.localhost", port, strings.ReplaceAll(v.ID, "_", "-"))
}

func (s *service) requireHTTP(t *testing.T, v api.VM) {
	t.Helper()
	host := implicit(v, 8080)
	require := func(host, path string, status int) webAnswer {
		t.Helper()
		got, err := s.visit(t.Context(), host, http.MethodGet, path, nil)
		if err != nil || got.status != status {
			t.Fatalf("%s%s: got %d, %s, %v; want %d", host, path, got.status, got.body, err, status)
		}
		return got
	}
	require(host, "/health", http.StatusOK)
	require(host, "/nothing", http.StatusNotFound)
	require(implicit(v, 8082), "/", http.StatusBadGateway)
	require("8080-vm-000000000000.localhost", "/", http.StatusNotFound)

	size := int64(8 << 20)
	if !v.EnableNetwork { // the agent's channel is slower
		size = 2 << 20
	}
	want := payload.SumOf(size)
	began := time.Now()
	file, err := s.visit(t.Context(), host, http.MethodGet, fmt.Sprintf("/source?bytes=%d", size), nil)
	sum := payload.Sum()
	_, _ = sum.Write(file.body)
	if err != nil || int64(len(file.body)) != size || sum.Sum64() != want {
		t.Errorf("down: %d bytes, or another sum, %v", len(file.body), err)
	}
	took(t, fmt.Sprint(size>>20, " MiB down"), began)
	began = time.Now()
	got, err := s.visit(t.Context(), host, http.MethodPut, "/sink", payload.Reader(size))
	if want := fmt.Sprintf("%d %x", size, want); err != nil || string(got.body) != want {
		t.Errorf("up: the guest counts %s, want %s, %v", got.body, want, err)
	}
	took(t, fmt.Sprint(size>>20, " MiB up"), began)

	s.sleep(t, v)
	s.requireTunnel(t, v)
	s.sleep(t, v)
	before := s.wakes(t, v)
	began = time.Now()
	if timing := require(host, "/health", http.StatusOK).header.Get("Server-Timing"); !strings.HasPrefix(timing, "wake;dur=") {
		t.Errorf("Server-Timing %q", timing)
	}
	took(t, "a request that wakes", began)
	s.sleep(t, v)
	if _, err := each(50, func(ctx context.Context, _ int) (api.VM, error) {
		got, err := s.visit(ctx, host, http.MethodGet, "/health", nil)
		if err == nil && (got.status != http.StatusOK || string(got.body) != "well\n") {
			err = fmt.Errorf("%d: %s", got.status, got.body)
		}
		return v, err
	}); err != nil {
		t.Errorf("of fifty at once: %v", err)
	}
	if n := s.wakes(t, v) - before; n != 2 {
		t.Errorf("%d wakes for two sleeps", n)
	}
}

// requireTunnel wakes a guest by a tunnel, and sends a request through it that ends with
// its direction.
func (s *service) requireTunnel(t *testing.T, v api.VM) {
	t.Helper()
	if _, err := s.client.OpenTunnel(t.Context(), v.ID, 8082); !client.IsUnavailable(err) {
		t.Errorf("a port without a program: %v", err)
	}
	tunnel, err := s.client.OpenTunnel(t.Context(), v.ID, 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tunnel.Close() }()
	if _, err := io.WriteString(tunnel, "GET /health HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := tunnel.CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(tunnel); err != nil || !strings.HasPrefix(string(got), "HTTP/1.0 200") && !strings.HasPrefix(string(got), "HTTP/1.1 200") {
		t.Errorf("got %q, %v", got, err)
	}
	if now := s.get(t, v.ID); now.LastActivity == nil || now.LastActivity.Cause != "tunnel" {
		t.Errorf("its last activity is %+v", now.LastActivity)
	}
}
