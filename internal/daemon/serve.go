package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/capacity"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/certs"
	"github.com/hatchvm/hatch/internal/server/httpapi"
	"github.com/hatchvm/hatch/internal/server/local"
)

// maxHeader is the size of a request's head in bytes: more than a path in a guest, all
// of its bytes percent-encoded, and a key.
const maxHeader = 64 << 10

// descriptorsPerConn is how many file descriptors there must be for each connection to
// the API: most are for VMs, and for SSH.
const descriptorsPerConn = 4

// refusal answers a connection for which there is no place.
const refusal = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 5\r\n" +
	"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n" +
	`{"title":"Service Unavailable","status":503,"code":"too_many_connections","error":"cannot serve this: there are too many connections","hint":"try again; HATCH_HTTP_MAX_CONNECTIONS and HATCH_HTTP_MAX_CLIENT_CONNECTIONS are the limits"}` + "\n"

// apiDoor is the server of the API, and its listeners, with limited connections.
type apiDoor struct {
	*http.Server
	network net.Listener
	tls     bool         // over the network; net/http sets a TLSConfig in any case
	socket  net.Listener // nil: there is none
}

// openAPI listens.
func (p *parts) openAPI(ctx context.Context) (*apiDoor, error) {
	gid, err := local.GroupID()
	if err != nil {
		p.log.Warn("members of the group need a key at the local socket", logkey.Group, local.Group, logkey.Error, err)
		gid = -1
	}
	door := &apiDoor{Server: p.server(gid)}
	if p.cfg.HTTPTLSCert != "" {
		certificates, err := certs.Open(ctx, certs.Config{CertFile: p.cfg.HTTPTLSCert, KeyFile: p.cfg.HTTPTLSKey, ClientCAFile: p.cfg.HTTPTLSClientCA, Log: p.log})
		if err != nil {
			return nil, fmt.Errorf("cannot serve the API over TLS: %w", err)
		}
		door.TLSConfig, door.tls = certificates.TLS(), true
	}
	if p.cfg.ExposesPlainHTTP() {
		p.log.Warn("the API is served to other hosts without TLS, so that keys can be read on the way; set HATCH_HTTP_TLS_CERT, or HATCH_HTTP_ADDR to loopback", logkey.Addr, p.cfg.HTTPAddr)
	}
	network, err := net.Listen("tcp", p.cfg.HTTPAddr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on HATCH_HTTP_ADDR %s: %w", p.cfg.HTTPAddr, err)
	}
	socket, err := p.listenLocal(ctx, gid)
	if err != nil {
		return nil, errors.Join(err, network.Close())
	}
	places := p.places()
	door.network = admission.Limit(network, places, refusal, p.lines)
	if socket != nil {
		door.socket = admission.Limit(socket, places, refusal, p.lines)
	}
	return door, nil
}

// listenLocal makes the socket for programs of this host; nil means that there is none,
// because the operator wants none, or the places where hatchd puts it cannot be used.
func (p *parts) listenLocal(ctx context.Context, gid int) (net.Listener, error) {
	var failures error
	for _, path := range p.cfg.SocketPaths() {
		l, err := local.Listen(ctx, local.Config{Path: path, OwnDir: path == config.RunSocket, GID: gid})
		if err == nil {
			p.log.Info("the API has a local socket", logkey.File, path, logkey.Group, gid)
			return l, nil
		}
		failures = errors.Join(failures, fmt.Errorf("cannot listen on %s: %w", path, err))
	}
	if p.cfg.Socket.Path != "" {
		return nil, fmt.Errorf("cannot use HATCH_SOCKET: %w", failures)
	}
	if failures != nil {
		p.log.Error("the API has no local socket: set HATCH_SOCKET to a path, or to off", logkey.Error, failures)
	}
	return nil, nil
}

// serve serves until the server is shut down, or one of its listeners fails.
func (d *apiDoor) serve() error {
	ended := make(chan error, 2)
	go func() {
		if d.tls {
			ended <- d.ServeTLS(d.network, "", "")
			return
		}
		ended <- d.Serve(d.network)
	}()
	if d.socket != nil {
		go func() { ended <- d.Serve(d.socket) }()
	}
	return <-ended
}

// close closes listeners that were not served.
func (d *apiDoor) close() error {
	err := d.network.Close()
	if d.socket != nil {
		err = errors.Join(err, d.socket.Close())
	}
	return err
}

// places returns those of connections to the API.
func (p *parts) places() *admission.Places {
	most := admission.Descriptors() / descriptorsPerConn
	if p.cfg.HTTPMaxConns > most {
		p.log.Warn("hatchd may have too few file descriptors for HATCH_HTTP_MAX_CONNECTIONS; raise LimitNOFILE of its unit", "connections", most)
	}
	return admission.NewPlaces(admission.PlaceLimits{Total: min(p.cfg.HTTPMaxConns, most), PerClient: min(p.cfg.HTTPMaxClientConns, most)})
}

// server returns the server of the API. Processes of this host that root, hatchd's user
// or a member of the group has started need no key.
func (p *parts) server(gid int) *http.Server {
	return &http.Server{
		Handler:           p.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		// No WriteTimeout: waits and log streams are long and bound themselves.
		ErrorLog:    slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return p.streams },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if peer, ok := local.PeerOf(conn); ok && peer.Trusted(gid) {
				return httpapi.WithLocal(ctx, peer.UID)
			}
			return ctx
		},
	}
}

// limitMemory makes the Go runtime return memory before hatchd takes it from VMs, or
// the kernel ends hatchd. The runtime itself reads GOMEMLIMIT.
func limitMemory(cfg config.Config) error {
	if os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	limit := cfg.MemoryLimitMiB << 20
	if limit == 0 {
		var err error
		if limit, err = capacity.OwnLimit(); err != nil {
			return err
		}
	}
	debug.SetMemoryLimit(limit)
	return nil
}
