//go:build system

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
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

// testHTTP reaches programs in guests by names, awake and asleep, by the network and
// through the agent.
func testHTTP(t *testing.T, w *world) {
	for _, network := range []bool{true, false} {
		t.Run(fmt.Sprintf("network %v", network), func(t *testing.T) {
			body := minimal()
			body.EnableNetwork = &network
			v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
			w.inside(t, v, `mkdir -p /tmp/www/cgi-bin; head -c 8388608 /dev/urandom > /tmp/www/file; echo well > /tmp/www/health
printf '#!/bin/sh\necho "Content-Type: text/plain"; echo; head -c $CONTENT_LENGTH | sha256sum\n' > /tmp/www/cgi-bin/sum; chmod 755 /tmp/www/cgi-bin/sum
httpd -p 8080 -h /tmp/www`)
			w.requireHTTP(t, v)
		})
	}
}

func (w *world) requireHTTP(t *testing.T, v api.VM) {
	t.Helper()
	host := "8080-" + strings.ReplaceAll(v.ID, "_", "-") + ".localhost"
	require := func(host, path string, status int) webAnswer {
		t.Helper()
		got, err := w.visit(t.Context(), host, http.MethodGet, path, nil)
		if err != nil || got.status != status {
			t.Fatalf("%s%s: got %d, %s, %v; want %d", host, path, got.status, got.body, err, status)
		}
		return got
	}
	require(host, "/health", http.StatusOK)
	require(host, "/nothing", http.StatusNotFound)
	require("8081"+host[4:], "/", http.StatusBadGateway)
	require("8080-vm-000000000000.localhost", "/", http.StatusNotFound)

	want, _, _ := strings.Cut(w.inside(t, v, "sha256sum /tmp/www/file"), " ")
	began := time.Now()
	file, err := w.visit(t.Context(), host, http.MethodGet, "/file", nil)
	if sum := sha256.Sum256(file.body); err != nil || hex.EncodeToString(sum[:]) != want {
		t.Errorf("down: %d bytes with another sum, %v", len(file.body), err)
	}
	took(t, "8 MiB down", began)
	began = time.Now()
	sum, err := w.visit(t.Context(), host, http.MethodPost, "/cgi-bin/sum", bytes.NewReader(file.body))
	if err != nil || !strings.HasPrefix(string(sum.body), want) {
		t.Errorf("up: the guest counts %s, %v", sum.body, err)
	}
	took(t, "8 MiB up", began)

	w.sleep(t, v)
	w.requireTunnel(t, v)
	w.sleep(t, v)
	before := w.wakes(t, v)
	began = time.Now()
	if timing := require(host, "/health", http.StatusOK).header.Get("Server-Timing"); !strings.HasPrefix(timing, "wake;dur=") {
		t.Errorf("Server-Timing %q", timing)
	}
	took(t, "a request that wakes", began)
	w.sleep(t, v)
	if _, err := each(50, func(ctx context.Context, _ int) (api.VM, error) {
		got, err := w.visit(ctx, host, http.MethodGet, "/health", nil)
		if err == nil && (got.status != http.StatusOK || string(got.body) != "well\n") {
			err = fmt.Errorf("%d: %s", got.status, got.body)
		}
		return v, err
	}); err != nil {
		t.Errorf("of fifty at once: %v", err)
	}
	if n := w.wakes(t, v) - before; n != 2 {
		t.Errorf("%d wakes for two sleeps", n)
	}
}

// requireTunnel wakes a guest by a tunnel, and sends a request through it that ends with
// its direction.
func (w *world) requireTunnel(t *testing.T, v api.VM) {
	t.Helper()
	if _, err := w.client.OpenTunnel(t.Context(), v.ID, 8081); !client.IsUnavailable(err) {
		t.Errorf("a port without a program: %v", err)
	}
	tunnel, err := w.client.OpenTunnel(t.Context(), v.ID, 8080)
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
	if now := w.get(t, v.ID); now.LastActivity == nil || now.LastActivity.Cause != "tunnel" {
		t.Errorf("its last activity is %+v", now.LastActivity)
	}
}
