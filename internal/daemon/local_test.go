package daemon_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// dial returns a client without a key of a server, by a transport that keeps nothing open.
func dial(t *testing.T, server, key string, change func(*http.Transport)) *client.Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	change(transport)
	c, err := client.New(server, key, client.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheLocalSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "hatch") // a path short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{dir: dir}
	w.start(t)
	path := filepath.Join(dir, "hatchd.sock")
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	c := dial(t, "unix://"+path, "", func(h *http.Transport) { h.DialContext = client.DialUnix(path) })
	made, err := c.CreateVM(t.Context(), api.CreateVM{Name: "web"}, client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := w.GetVM(t.Context(), made.ID); err != nil || v.Name != "web" {
		t.Errorf("the admin's key sees %+v, %v", v, err)
	}
	for e, err := range c.ListEvents(t.Context(), client.EventOptions{VM: made.ID}) {
		if err != nil || e.Actor.Kind != api.ActorLocal || !strings.HasPrefix(e.Actor.Name, "local:uid ") {
			t.Errorf("the first event is %+v, %v", e, err)
		}
		break
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestNoLocalSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "hatch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{dir: dir, settings: []string{"HATCH_SOCKET=off"}}
	w.start(t)
	if _, err := os.Lstat(filepath.Join(dir, "hatchd.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a socket: %v", err)
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

// issue writes a certificate and its key, and returns the files.
func (a authority) issue(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// file writes the authority's own certificate.
func (a authority) file(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheAPIOverTLS(t *testing.T) {
	dir, err := os.MkdirTemp("", "hatch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	servers, clients := newAuthority(t), newAuthority(t)
	certFile, keyFile := servers.issue(t)
	w := &world{dir: dir, settings: []string{"HATCH_HTTP_TLS_CERT=" + certFile, "HATCH_HTTP_TLS_KEY=" + keyFile, "HATCH_HTTP_TLS_CLIENT_CA=" + clients.file(t)}}
	w.overTLS = true
	w.start(t)
	addr, err := os.ReadFile(filepath.Join(dir, "hatchd.addr"))
	if err != nil {
		t.Fatal(err)
	}
	at := strings.TrimSpace(string(addr))
	roots := x509.NewCertPool()
	roots.AddCert(servers.cert)
	pair := func(a authority) []tls.Certificate {
		loaded, err := tls.LoadX509KeyPair(a.issue(t))
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{loaded}
	}
	for name, c := range map[string]struct {
		server, key  string
		certificates []tls.Certificate
		good         func(error) bool
	}{
		"certificate and key":   {"https://" + at, key, pair(clients), func(err error) bool { return err == nil }},
		"certificate alone":     {"https://" + at, "", pair(clients), client.IsUnauthenticated},
		"another's certificate": {"https://" + at, key, pair(servers), client.IsUnreachable},
		"key alone":             {"https://" + at, key, nil, client.IsUnreachable},
		"without TLS":           {"http://" + at, key, nil, func(err error) bool { return err != nil && !client.IsUnauthenticated(err) }},
	} {
		t.Run(name, func(t *testing.T) {
			api := dial(t, c.server, c.key, func(h *http.Transport) {
				h.TLSClientConfig = &tls.Config{RootCAs: roots, Certificates: c.certificates}
			})
			if _, err := api.ListKeys(t.Context()); !c.good(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

// base returns the URL of the API.
func (w *world) base(t *testing.T) string {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(string(addr))
}
