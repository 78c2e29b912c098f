package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/certs"
	"github.com/hatchvm/hatch/internal/server/proxy"
	"github.com/hatchvm/hatch/internal/vm"
)

// routeGuests leads the proxy to guests. Names and credentials decide who may come, so
// that no user is asked for.
type routeGuests struct{ reach *reach.Reach }

var _ proxy.Guests = routeGuests{}

// Hold implements proxy.Guests.
func (g routeGuests) Hold(ctx context.Context, vmID, peer string) (context.Context, func()) {
	ctx = reach.WithPeer(ctx, peer)
	return ctx, g.reach.Hold(ctx, vmID, reach.Route)
}

// Current implements proxy.Guests.
func (g routeGuests) Current(vmID string) (uint64, bool) { return g.reach.Current(vmID) }

// Awake implements proxy.Guests.
func (g routeGuests) Awake(ctx context.Context, vmID string, wake bool) (uint64, error) {
	return g.reach.Machine(ctx, access.Everyone, vmID, reach.Route, wakeIf(wake))
}

// Dial implements proxy.Guests.
func (g routeGuests) Dial(ctx context.Context, vmID string, port int) (vm.PortConn, error) {
	return g.reach.Connect(ctx, access.Everyone, vmID, port, reach.Route)
}

// doors are the servers of routes.
type doors struct {
	proxy *proxy.Proxy

	sandboxes func() // closes what leads to sandboxes; nil without a door for E2B's clients
	servers   []*http.Server
	serving   sync.WaitGroup

	requests context.Context // of all of them, also of upgraded connections, which servers forget
	endAll   context.CancelFunc
}

// routeRefusal answers a connection to routes for which there is no place.
const routeRefusal = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n" +
	"Cache-Control: no-store\r\nConnection: close\r\n\r\ntoo many connections\n"

// defaultProxyAddr is that of HATCH_PROXY_ADDR. Another program may have its port: the
// VMs must not stay away for it.
const defaultProxyAddr = "127.0.0.1:9090"

// openDoors serves routes, and the API over TLS.
func (p *parts) openDoors(ctx context.Context) error {
	p.doors = &doors{proxy: proxy.New(proxy.Config{
		Names: p.routes, Guests: routeGuests{p.vms.Reach()}, WakeTimeout: p.cfg.WakeTimeout, Trusted: p.cfg.ProxyTrusted,
		Open: admission.PlaceLimits{Total: p.cfg.ProxyMaxConns, PerClient: p.cfg.ProxyMaxClientConns}, HSTS: p.cfg.HSTSMaxAge, Log: p.log, Lines: p.lines,
	})}
	p.doors.requests, p.doors.endAll = context.WithCancel(context.WithoutCancel(ctx))
	var plain http.Handler = p.doors.proxy
	var secure net.Listener
	tlsPort := 0
	if p.cfg.TLSAddr != "" {
		var err error
		if secure, err = p.listenRoutes("HATCH_TLS_ADDR", p.cfg.TLSAddr); err != nil {
			return errors.Join(err, p.doors.close(ctx, 0))
		}
		tlsPort = secure.Addr().(*net.TCPAddr).Port
	}
	if p.cfg.E2BAddr != "" {
		if err := p.openE2B(ctx, tlsPort); err != nil {
			if secure != nil {
				err = errors.Join(err, secure.Close())
			}
			return errors.Join(err, p.doors.close(ctx, 0))
		}
	}
	if secure != nil {
		challenges, err := p.openTLS(ctx, secure, tlsPort)
		if err != nil {
			return errors.Join(err, p.doors.close(ctx, 0))
		}
		plain = challenges
	}
	if p.cfg.ProxyAddr == "" {
		return nil
	}
	if err := p.openPlain(plain); err != nil {
		return errors.Join(err, p.doors.close(ctx, 0))
	}
	return nil
}

func (p *parts) openPlain(handler http.Handler) error {
	l, err := p.listenRoutes("HATCH_PROXY_ADDR", p.cfg.ProxyAddr)
	if errors.Is(err, syscall.EADDRINUSE) && p.cfg.ProxyAddr == defaultProxyAddr {
		p.log.Error("routes are not served: set HATCH_PROXY_ADDR to a free port", logkey.Error, err)
		return nil
	}
	if err != nil {
		return err
	}
	if err := publishAddr(proxyAddrFile(p.cfg.DataDir), l.Addr().String()); err != nil {
		return errors.Join(err, l.Close())
	}
	p.onClose(func() error { return os.Remove(proxyAddrFile(p.cfg.DataDir)) })
	server := proxy.NewServer(handler, p.log)
	p.serveRoutes(server, func() error { return server.Serve(l) })
	p.log.Info("routes are served", "proxy_addr", l.Addr().String(), logkey.Domain, p.cfg.ProxyDomain)
	return nil
}

// openTLS serves over TLS, and returns what the port without TLS answers: an ACME server,
// and redirects for all others.
func (p *parts) openTLS(ctx context.Context, l net.Listener, port int) (plain http.Handler, err error) {
	cfg := certs.Config{CertFile: p.cfg.TLSCert, KeyFile: p.cfg.TLSKey, Serves: p.serves, Log: p.log, Lines: p.lines}
	if p.cfg.ACMEEmail != "" {
		if cfg.ACME, err = p.acme(port); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	certificates, err := certs.Open(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	p.onClose(func() error { certificates.Close(); return nil })
	api, clients := p.untilEnd(p.handler), http.Handler(nil)
	if p.e2b != nil {
		clients = p.untilEnd(p.e2b)
	}
	server := proxy.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.isForE2B(r):
			clients.ServeHTTP(w, r)
		case p.isAPI(r.Host):
			api.ServeHTTP(w, r)
		default:
			p.doors.proxy.ServeHTTP(w, r)
		}
	}), p.log)
	if p.e2b != nil {
		server.IdleTimeout, server.HTTP2.MaxConcurrentStreams = e2bIdle, e2bStreams
	}
	server.TLSConfig = certificates.TLS()
	p.serveRoutes(server, func() error { return server.ServeTLS(l, "", "") })
	p.log.Info("routes are served over TLS", "tls_addr", l.Addr().String(), "api", p.apiName())
	return certificates.Challenges(proxy.RedirectToTLS(port)), nil
}

// acme returns how certificates are obtained.
func (p *parts) acme(tlsPort int) (*certs.ACME, error) {
	a := &certs.ACME{
		CA: p.cfg.ACMECA, Email: p.cfg.ACMEEmail, Dir: filepath.Join(p.cfg.DataDir, "certificates"), Domain: p.cfg.ProxyDomain, TLSPort: tlsPort,
	}
	if _, port, err := net.SplitHostPort(p.cfg.ProxyAddr); err == nil {
		a.HTTPPort, _ = strconv.Atoi(port) // the configuration has checked it
	}
	if p.cfg.ACMEDNSServer != "" {
		a.DNS = certs.NewDNS(p.cfg.ACMEDNSServer, p.cfg.ACMEDNSKey)
	}
	if p.cfg.ACMECARoots == "" {
		return a, nil
	}
	text, err := os.ReadFile(p.cfg.ACMECARoots)
	if err != nil {
		return nil, fmt.Errorf("cannot read HATCH_ACME_CA_ROOTS: %w", err)
	}
	if a.Roots = x509.NewCertPool(); !a.Roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("HATCH_ACME_CA_ROOTS %s has no certificate in PEM", p.cfg.ACMECARoots)
	}
	return a, nil
}

// serves returns an error for a host name that gets no certificate.
func (p *parts) serves(ctx context.Context, name string) error {
	if p.isAPI(name) {
		return nil
	}
	return p.routes.Certifies(ctx, name)
}

// apiName is the host name of the API over TLS.
func (p *parts) apiName() string { return "api." + p.cfg.ProxyDomain }

func (p *parts) isAPI(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.EqualFold(strings.TrimSuffix(host, "."), p.apiName())
}

// routeURL returns the URL of a route's host name, as clients on this host reach it.
func (p *parts) routeURL(host string) string {
	scheme, addr, usual := "http://", p.cfg.ProxyAddr, "80"
	if p.cfg.TLSAddr != "" {
		scheme, addr, usual = "https://", p.cfg.TLSAddr, "443"
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == usual {
		return scheme + host
	}
	return scheme + host + ":" + port
}

func proxyAddrFile(dataDir string) string { return filepath.Join(dataDir, "proxy.addr") }

// listenRoutes returns a listener with limited connections.
func (p *parts) listenRoutes(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s %s: %w", setting, addr, err)
	}
	most := admission.Descriptors() / descriptorsPerConn
	places := admission.NewPlaces(admission.PlaceLimits{Total: min(p.cfg.ProxyMaxConns, most), PerClient: min(p.cfg.ProxyMaxClientConns, most)})
	return admission.Limit(l, places, routeRefusal, p.lines), nil
}

// serveRoutes serves until the server is shut down.
func (p *parts) serveRoutes(s *http.Server, serve func() error) {
	s.BaseContext = func(net.Listener) context.Context { return p.doors.requests }
	p.doors.servers = append(p.doors.servers, s)
	p.doors.serving.Go(func() {
		if err := ignoreClosed(serve()); err != nil {
			p.log.Error("routes are no longer served", logkey.Error, err)
		}
	})
}

// close gives requests in progress some time to end, and then ends them by their contexts,
// and upgraded connections, too. An error means that some have not ended once ctx is done.
func (d *doors) close(ctx context.Context, grace time.Duration) error {
	graceful, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	_ = d.shutdown(graceful) // asked again
	d.endAll()
	err := d.shutdown(ctx)
	if err != nil {
		for _, s := range d.servers {
			err = errors.Join(err, s.Close())
		}
		err = fmt.Errorf("requests through routes still running: %w", err)
	}
	d.proxy.Close()
	if d.sandboxes != nil {
		d.sandboxes()
	}
	d.serving.Wait()
	return err
}

func (d *doors) shutdown(ctx context.Context) error {
	ended := make([]error, len(d.servers))
	var all sync.WaitGroup
	for i, s := range d.servers {
		all.Go(func() { ended[i] = s.Shutdown(ctx) })
	}
	all.Wait()
	return errors.Join(ended...)
}
