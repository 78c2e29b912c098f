//nolint:bodyclose // world.do closes bodies at the end of a test, and connections close with theirs
package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vmID = "vm_abc123def456"

// world is a door with one VM behind it, whose ports are servers of the test.
type world struct {
	t     testing.TB
	proxy *Proxy
	front *httptest.Server
	log   bytes.Buffer

	mu       sync.Mutex
	target   route.Target
	allow    func(route.Credentials) (route.Grant, error)
	address  string // of the guest's port; "" refuses
	machine  uint64 // 0: it sleeps
	wakes    int
	wake     func(ctx context.Context) error // during a wake; nil: nothing
	uses     int
	peers    []string
	dials    int
	refusals int // dials to refuse first
}

// newWorld returns a door before a guest that runs and serves with handler.
func newWorld(t testing.TB, handler http.Handler, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, machine: 1, target: route.Target{
		VMID: vmID, OwnerID: "acc_a", RouteID: "rt_a", Port: 8080, AutoWake: true,
		Auth: route.Auth{Mode: route.Public}, Upstream: route.HTTP1,
	}}
	guest := httptest.NewUnstartedServer(handler)
	guest.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	guest.Config.Protocols = new(http.Protocols)
	guest.Config.Protocols.SetHTTP1(true)
	guest.Config.Protocols.SetUnencryptedHTTP2(true)
	guest.Start()
	t.Cleanup(guest.Close)
	w.address = guest.Listener.Addr().String()
	w.serve(change...)
	return w
}

func (w *world) serve(change ...func(*Config)) {
	log := slog.New(slog.NewTextHandler(&w.log, nil))
	cfg := Config{Names: w, Guests: w, WakeTimeout: 5 * time.Second, Log: log, Lines: admission.NewLog(log)}
	w.t.Cleanup(cfg.Lines.Close)
	for _, c := range change {
		c(&cfg)
	}
	w.proxy = New(cfg)
	w.t.Cleanup(w.proxy.Close)
	w.front = httptest.NewUnstartedServer(w.proxy)
	w.front.Config = NewServer(w.proxy, log)
	w.front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	w.front.Start()
	w.t.Cleanup(func() { w.front.CloseClientConnections(); w.front.Close() })
}

func (w *world) Resolve(_ context.Context, host string) (route.Target, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name, _, _ := strings.Cut(host, ":"); name != "web.localhost" {
		return route.Target{}, errs.New(errs.NotFound, "route_not_found", "no route")
	}
	return w.target, nil
}

func (w *world) Watch(ctx context.Context, _ route.Grant) (context.Context, func()) {
	return ctx, func() {}
}

func (w *world) Authorize(_ context.Context, t route.Target, c route.Credentials) (grant route.Grant, err error) {
	err = refused
	if w.allow != nil {
		grant, err = w.allow(c)
	}
	if err != nil && t.RouteID == "" {
		err = route.ErrUnknown
	}
	return grant, err
}

func (w *world) Hold(ctx context.Context, _, peer string) (context.Context, func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uses++
	w.peers = append(w.peers, peer)
	return ctx, func() { w.mu.Lock(); w.uses--; w.mu.Unlock() }
}

func (w *world) Current(string) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine, w.machine != 0
}

func (w *world) Awake(ctx context.Context, _ string, wake bool) (uint64, error) {
	if machine, ok := w.Current(""); ok {
		return machine, nil
	}
	if !wake {
		return 0, errs.New(errs.Conflict, "vm_not_running", "VM %s is snapshotted in /var/lib/secret", vmID)
	}
	w.mu.Lock()
	w.wakes++
	during := w.wake
	w.mu.Unlock()
	if during != nil {
		if err := during(ctx); err != nil {
			return 0, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machine = uint64(w.wakes) + 1
	return w.machine, nil
}

func (w *world) Dial(ctx context.Context, _ string, _ int) (vm.PortConn, error) {
	w.mu.Lock()
	w.dials++
	address := w.address
	if w.refusals > 0 {
		w.refusals--
		address = ""
	}
	w.mu.Unlock()
	if address == "" {
		return nil, errors.New("refused by 172.16.0.2")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// do sends a request to the door for web.localhost.
func (w *world) do(r *http.Request) *http.Response {
	w.t.Helper()
	resp, err := w.client().Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func (w *world) client() *http.Client {
	c := *w.front.Client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

func (w *world) request(method, path string, body io.Reader, header ...string) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.front.URL+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Host = "web.localhost"
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func (w *world) get(path string, header ...string) (status int, body string, h http.Header) {
	w.t.Helper()
	resp := w.do(w.request(http.MethodGet, path, nil, header...))
	return resp.StatusCode, text(w.t, resp.Body), resp.Header
}

func text(t testing.TB, r io.Reader) string {
	t.Helper()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(all)
}

// sleep puts the VM to sleep.
func (w *world) sleep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machine = 0
}

// await waits until a condition of the world holds.
func (w *world) await(what string, holds func() bool) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10000 {
		w.mu.Lock()
		ok := holds()
		w.mu.Unlock()
		if ok {
			return
		}
		<-tick.C
	}
	w.t.Fatalf("not so in time: %s", what)
}

// selfSigned returns a certificate for web.localhost.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"web.localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
