package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake"
)

// get sends a request to the daemon's proxy, and returns the answer's status,
// header and body.
func (w *world) get(t *testing.T, host, key string) (status int, header http.Header, body string) {
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
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(text)
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
		is, header, got := w.get(t, host, key)
		if is != status || body != "" && got != body {
			t.Errorf("%s: got %d, %s", host, is, got)
		}
		return header
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

// A request that is in progress when the daemon ends is served.
func TestRequestsThroughRoutesEndBeforeTheDaemon(t *testing.T) {
	arrived, cut, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	guest := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-r.Context().Done():
			close(cut)
		case <-release:
			_, _ = io.WriteString(rw, "served")
		}
	}))
	defer guest.Close()
	w := &world{dir: t.TempDir(), onHost: func(h *daemon.Host) {
		h.Guests.(*fake.Guests).DialPort = func(ctx context.Context, _ int) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", guest.Listener.Addr().String())
		}
	}}
	w.start(t)
	no := false
	if _, err := w.CreateVM(t.Context(), api.CreateVM{Name: "web", MachineSpec: api.MachineSpec{EnableNetwork: &no}}, client.CreateOptions{Wait: "running"}); err != nil {
		t.Fatal(err)
	}
	addr, err := os.ReadFile(filepath.Join(w.dir, "proxy.addr"))
	if err != nil {
		t.Fatal(err)
	}
	answer, ended := make(chan string, 1), make(chan error, 1)
	go func() { defer close(answer); _, _, body := w.get(t, "3000-web.localhost", key); answer <- body }()
	<-arrived
	go func() { ended <- w.end() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for closed := false; !closed; { // once it is, the daemon ends
		conn, err := net.Dial("tcp", strings.TrimSpace(string(addr)))
		if closed = err != nil; !closed {
			_ = conn.Close()
			<-tick.C
		}
	}
	select {
	case <-cut:
		t.Fatal("the request was cut")
	case release <- struct{}{}:
	}
	if body := <-answer; body != "served" {
		t.Errorf("got %q", body)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// With a certificate, routes and the API are served over TLS, and the port without it
// leads there.
func TestTLSServesRoutesAndTheAPI(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, roots := certificate(t, dir, "*.localhost")
	w := &world{dir: t.TempDir(), settings: []string{"HATCH_TLS_ADDR=127.0.0.1:0", "HATCH_TLS_CERT=" + certFile, "HATCH_TLS_KEY=" + keyFile, "HATCH_HSTS_MAX_AGE=1h"}}
	w.start(t)
	status, header, _ := w.get(t, "any.localhost", key)
	at, err := url.Parse(header.Get("Location"))
	if err != nil || status != http.StatusPermanentRedirect || at.Scheme != "https" || at.Hostname() != "any.localhost" || at.Path != "/page" {
		t.Fatalf("got %d to %v, %v", status, at, err)
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", "127.0.0.1:"+at.Port())
	}}
	defer transport.CloseIdleConnections()
	for address, want := range map[string]int{"https://api.localhost/healthz": http.StatusOK, "https://api.localhost/vms": http.StatusUnauthorized, "https://any.localhost/": http.StatusNotFound} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want || resp.ProtoMajor != 2 || resp.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: got %d over %s, %v", address, resp.StatusCode, resp.Proto, resp.Header)
		}
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

// certificate writes a certificate for a name and its key.
func certificate(t *testing.T, dir, name string) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, text := range map[string][]byte{certFile: text, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return certFile, keyFile, roots
}
