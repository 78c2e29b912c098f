//go:build system

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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

// visit sends a request to a port of a VM by its name, and returns the answer's body.
func (w *world) visit(ctx context.Context, host, method, path string, body io.Reader) (*http.Response, []byte, error) {
	key, err := os.ReadFile(w.data("admin.key"))
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+proxyAddr+path, body)
	if err != nil {
		return nil, nil, err
	}
	r.Host = host
	r.Header.Set("X-API-Key", strings.TrimSpace(string(key)))
	resp, err := direct.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp, got, err
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
	require := func(host, path string, status int) *http.Response {
		t.Helper()
		resp, got, err := w.visit(t.Context(), host, http.MethodGet, path, nil)
		if err != nil || resp.StatusCode != status {
			t.Fatalf("%s%s: got %v, %s, %v; want %d", host, path, resp, got, err, status)
		}
		return resp
	}
	require(host, "/health", http.StatusOK)
	require(host, "/nothing", http.StatusNotFound)
	require("8081"+host[4:], "/", http.StatusBadGateway)
	require("8080-vm-000000000000.localhost", "/", http.StatusNotFound)

	want, _, _ := strings.Cut(w.inside(t, v, "sha256sum /tmp/www/file"), " ")
	began := time.Now()
	_, file, err := w.visit(t.Context(), host, http.MethodGet, "/file", nil)
	if sum := sha256.Sum256(file); err != nil || hex.EncodeToString(sum[:]) != want {
		t.Errorf("down: %d bytes with another sum, %v", len(file), err)
	}
	took(t, "8 MiB down", began)
	began = time.Now()
	_, got, err := w.visit(t.Context(), host, http.MethodPost, "/cgi-bin/sum", strings.NewReader(string(file)))
	if err != nil || !strings.HasPrefix(string(got), want) {
		t.Errorf("up: the guest counts %s, %v", got, err)
	}
	took(t, "8 MiB up", began)

	w.sleep(t, v)
	before := w.wakes(t, v)
	began = time.Now()
	if resp := require(host, "/health", http.StatusOK); !strings.HasPrefix(resp.Header.Get("Server-Timing"), "wake;dur=") {
		t.Errorf("Server-Timing %q", resp.Header.Get("Server-Timing"))
	}
	took(t, "a request that wakes", began)
	w.sleep(t, v)
	if _, err := each(50, func(ctx context.Context, _ int) (api.VM, error) {
		resp, got, err := w.visit(ctx, host, http.MethodGet, "/health", nil)
		if err == nil && (resp.StatusCode != http.StatusOK || string(got) != "well\n") {
			err = errors.New(resp.Status + ": " + string(got))
		}
		return v, err
	}); err != nil {
		t.Errorf("of fifty at once: %v", err)
	}
	if n := w.wakes(t, v) - before; n != 2 {
		t.Errorf("%d wakes for two sleeps", n)
	}
}
