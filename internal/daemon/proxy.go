package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/proxy"
)

// routeGuests leads the proxy to guests. Names and credentials decide who may come, so
// that no account is asked for.
type routeGuests struct{ reach *reach.Reach }

var _ proxy.Guests = routeGuests{}

// Hold implements proxy.Guests.
func (g routeGuests) Hold(ctx context.Context, vmID, peer string) func() {
	return g.reach.Hold(reach.WithPeer(ctx, peer), vmID, reach.Route)
}

// Current implements proxy.Guests.
func (g routeGuests) Current(vmID string) (uint64, bool) { return g.reach.Current(vmID) }

// Awake implements proxy.Guests.
func (g routeGuests) Awake(ctx context.Context, vmID string, wake bool) (uint64, error) {
	return g.reach.Machine(ctx, access.Everyone, vmID, reach.Route, wakeIf(wake))
}

// Dial implements proxy.Guests.
func (g routeGuests) Dial(ctx context.Context, vmID string, port int) (net.Conn, error) {
	return g.reach.Connect(ctx, access.Everyone, vmID, port, reach.Route)
}

// doors are the servers of routes.
type doors struct {
	proxy   *proxy.Proxy
	servers []*http.Server
	serving sync.WaitGroup
}

// routeRefusal answers a connection to routes for which there is no place.
const routeRefusal = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n" +
	"Cache-Control: no-store\r\nConnection: close\r\n\r\ntoo many connections\n"

// defaultProxyAddr is that of HATCH_PROXY_ADDR. Another program may have its port: the
// VMs must not stay away for it.
const defaultProxyAddr = "127.0.0.1:9090"

// openDoors serves routes.
func (p *parts) openDoors() error {
	p.doors = &doors{proxy: proxy.New(proxy.Config{
		Names: p.routes, Guests: routeGuests{p.vms.Reach()}, WakeTimeout: p.cfg.WakeTimeout, Trusted: p.cfg.ProxyTrusted,
		Open: admission.PlaceLimits{Total: p.cfg.ProxyMaxConns, PerClient: p.cfg.ProxyMaxClientConns}, Log: p.log, Lines: p.lines,
	})}
	if p.cfg.ProxyAddr == "" {
		return nil
	}
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
	server := proxy.NewServer(p.doors.proxy, p.log)
	p.serveRoutes(server, func() error { return server.Serve(l) })
	p.log.Info("routes are served", "proxy_addr", l.Addr().String(), "domain", p.cfg.ProxyDomain)
	return nil
}

// routeURL returns the URL of a route's host name, as clients on this host reach it.
func (p *parts) routeURL(host string) string {
	_, port, err := net.SplitHostPort(p.cfg.ProxyAddr)
	if err != nil || port == "80" {
		return "http://" + host
	}
	return "http://" + host + ":" + port
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
	s.BaseContext = func(net.Listener) context.Context { return p.streams }
	p.doors.servers = append(p.doors.servers, s)
	p.doors.serving.Go(func() {
		if err := ignoreClosed(serve()); err != nil {
			p.log.Error("routes are no longer served", logkey.Error, err)
		}
	})
}

// close ends requests in progress once ctx is done.
func (d *doors) close(ctx context.Context) error {
	var failures []error
	for _, s := range d.servers {
		if err := s.Shutdown(ctx); err != nil {
			failures = append(failures, fmt.Errorf("requests through routes still running: %w", err), s.Close())
		}
	}
	d.proxy.Close()
	d.serving.Wait()
	return errors.Join(failures...)
}
