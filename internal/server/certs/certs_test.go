package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/server/admission"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"), // it has no end
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"), // of certmagic's client, which cannot be closed
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"), goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop")) // they end by themselves, later
}

const domain = "apps.example"

// key is that of the DNS server.
const keyName, keySecret = "hatch.", "c2VjcmV0IG9mIHRoaXMgdGVzdA=="

// names is a DNS server that has all names at 127.0.0.1, and takes updates of TXT records.
type names struct {
	addr string

	mu  sync.Mutex
	txt map[string][]dns.RR
	got int // updates
}

func serveNames(t *testing.T) *names {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n := &names{addr: l.Addr().String(), txt: map[string][]dns.RR{}}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait) // once they are shut down
	for _, s := range []*dns.Server{{Listener: l}, {PacketConn: packets}} {
		s.Handler, s.TsigSecret = n, map[string]string{keyName: keySecret}
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		serving.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

// ServeDNS implements dns.Handler.
func (n *names) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := new(dns.Msg).SetReply(r)
	m.Authoritative = true
	q := r.Question[0]
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: domain + ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1}, Ns: "ns." + domain + ".", Mbox: "m.", Serial: 1}
	switch {
	case r.Opcode == dns.OpcodeUpdate && (r.IsTsig() == nil || w.TsigStatus() != nil):
		m.Rcode = dns.RcodeRefused
	case r.Opcode == dns.OpcodeUpdate:
		n.got++
		for _, rr := range r.Ns {
			name := strings.ToLower(rr.Header().Name)
			if rr.Header().Class == dns.ClassINET {
				n.txt[name] = append(n.txt[name], rr)
			} else {
				delete(n.txt, name)
			}
		}
		m.SetTsig(keyName, dns.HmacSHA256, tsigFudge, time.Now().Unix())
	case q.Qtype == dns.TypeTXT:
		m.Answer = n.txt[strings.ToLower(q.Name)]
	case q.Qtype == dns.TypeSOA && q.Name == domain+".":
		m.Answer = []dns.RR{soa}
	case q.Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)}}
	default:
		m.Ns = []dns.RR{soa}
	}
	_ = w.WriteMsg(m)
}

// world is an ACME server, and two servers with certificates of it.
type world struct {
	names *names
	acme  *ACME
	roots *x509.CertPool // of the certificates
	addr  string         // of the server with TLS
	certs *Certs
	cfg   Config
}

func newWorld(t *testing.T, change func(*ACME)) *world {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	quiet := slog.NewLogLogger(slog.DiscardHandler, 0)
	w := &world{names: serveNames(t)}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	w.addr = secure.Addr().String()
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	checks := va.New(quiet, port(plain), port(secure), false, w.names.addr, store)
	front := wfe.New(quiet, store, checks, authority, []string{"pebble.example"}, false, false, 0, 0)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	trusted := x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	w.acme = &ACME{
		CA: server.URL + "/dir", Roots: trusted, Email: "admin@apps.example", Dir: t.TempDir(), Domain: domain,
		HTTPPort: port(plain), TLSPort: port(secure),
	}
	change(w.acme)
	if w.acme.DNS != nil {
		w.acme.DNS.Server = w.names.addr
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(authority.GetRootCert(0).PEM())
	lines := admission.NewLog(slog.New(slog.DiscardHandler))
	t.Cleanup(lines.Close)
	w.cfg = Config{ACME: w.acme, Log: slog.New(slog.DiscardHandler), Lines: lines, Serves: func(_ context.Context, name string) error {
		if name == "web."+domain || name == "own.example" {
			return nil
		}
		return errors.New("not served")
	}}
	if w.certs, err = Open(t.Context(), w.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.certs.Close() })
	hello := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "hello") })
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait) // once the servers are closed
	for l, s := range map[net.Listener]*http.Server{
		plain: {Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.certs.Challenges(hello).ServeHTTP(rw, r) })},
		tls.NewListener(secure, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return w.certs.TLS(), nil }}): {Handler: hello},
	} {
		s.ErrorLog = quiet
		serving.Go(func() { _ = s.Serve(l) })
		t.Cleanup(func() { _ = s.Close() })
	}
	return w
}

// handshake returns the certificate for a name.
func (w *world) handshake(t *testing.T, name string) (*x509.Certificate, error) {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: w.roots}}
	conn, err := d.DialContext(t.Context(), "tcp", w.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

func TestACertificateIsObtainedWhenAClientComes(t *testing.T) {
	for name, change := range map[string]func(*ACME){
		"by TLS-ALPN-01": func(a *ACME) { a.HTTPPort = 0 }, "by HTTP-01": func(a *ACME) { a.TLSPort = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, change)
			first, err := w.handshake(t, "web."+domain)
			if err != nil || first.VerifyHostname("web."+domain) != nil {
				t.Fatalf("got %v", err)
			}
			if _, err := w.handshake(t, "other."+domain); err == nil {
				t.Error("a name that is not served has a certificate")
			}
			w.certs.Close()
			if w.certs, err = Open(t.Context(), w.cfg); err != nil {
				t.Fatal(err)
			}
			again, err := w.handshake(t, "web."+domain)
			if err != nil || again.SerialNumber.Cmp(first.SerialNumber) != 0 {
				t.Errorf("after a restart: another certificate, %v", err)
			}
			if info, err := os.Stat(w.acme.Dir); err != nil || info.Mode().Perm() != 0o700 && info.Mode().Perm() != 0o755 {
				t.Errorf("the directory: %v, %v", info.Mode(), err)
			}
		})
	}
}

// Clients can cause any number of failures by naming hosts.
func TestFailuresFillNoLog(t *testing.T) {
	var log bytes.Buffer
	to := slog.New(slog.NewTextHandler(&log, nil))
	c := &Certs{cfg: Config{Log: to, Lines: admission.NewLog(to)}}
	defer c.cfg.Lines.Close()
	for range 200 {
		_ = c.event(t.Context(), "cert_failed", map[string]any{"identifier": "web." + domain, "error": errors.New("no")})
	}
	if lines := strings.Count(log.String(), "level=WARN"); lines == 0 || lines > 40 {
		t.Errorf("the log has %d lines", lines)
	}
	_ = c.event(t.Context(), "cert_obtained", map[string]any{"identifier": "web." + domain})
	if !strings.Contains(log.String(), "level=INFO msg=\"certificate obtained\" host_name=web."+domain) {
		t.Error("a certificate that was obtained is not logged")
	}
}

func TestTheWildcardIsObtainedByDNS(t *testing.T) {
	w := newWorld(t, func(a *ACME) {
		a.HTTPPort, a.TLSPort = 0, 0
		a.DNS = NewDNS("", "hatch:"+keySecret)
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for try := 0; ; try++ {
		cert, err := w.handshake(t, "any."+domain)
		if err == nil {
			if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "*."+domain {
				t.Errorf("a certificate for %v", cert.DNSNames)
			}
			break
		}
		if try == 400 {
			t.Fatal(err)
		}
		<-tick.C
	}
	w.names.mu.Lock()
	defer w.names.mu.Unlock()
	if w.names.got == 0 {
		t.Error("DNS was not updated")
	}
}

func TestAWrongDNSKeyIsRefused(t *testing.T) {
	d := &DNS{Server: serveNames(t).addr, Key: keyName, Secret: "d3Jvbmc="}
	if _, err := d.AppendRecords(t.Context(), domain, nil); err == nil || strings.Contains(err.Error(), d.Secret) {
		t.Errorf("got %v", err)
	}
}

// pair writes a certificate for a name and its key.
func pair(t *testing.T, dir, name string, at time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: at.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := errors.Join(os.WriteFile(file, pem.EncodeToMemory(block), 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	certFile, keyFile := pair(t, dir, "one.example", now)
	c, err := Open(t.Context(), Config{CertFile: certFile, KeyFile: keyFile, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	require := func(want string) {
		t.Helper()
		c.file.forget()
		got, err := c.TLS().GetCertificate(&tls.ClientHelloInfo{ServerName: want})
		if err != nil || got.Leaf.DNSNames[0] != want {
			t.Errorf("got %v, %v; want %s", got, err, want)
		}
	}
	require("one.example")
	before, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pair(t, dir, "two.example", now.Add(time.Minute))
	require("two.example")
	after, err := os.ReadFile(keyFile)
	if err != nil || bytes.Equal(before, after) {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, before, 0o600); err != nil { // it does not fit
		t.Fatal(err)
	}
	require("two.example")
	if _, err := Open(t.Context(), Config{CertFile: certFile, KeyFile: keyFile}); err == nil {
		t.Error("a pair that does not fit is accepted")
	}
}
