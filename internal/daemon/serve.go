package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/capacity"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// maxHeader is the size of a request's head in bytes: more than a path in a guest, all
// of its bytes percent-encoded, and a key.
const maxHeader = 64 << 10

// descriptorsPerConn is how many file descriptors there must be for each connection to
// the API: most are for VMs, and for SSH.
const descriptorsPerConn = 4

// refusal answers a connection for which there is no place.
const refusal = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 5\r\n" +
	"Cache-Control: no-store\r\nConnection: close\r\n\r\n" +
	`{"title":"Service Unavailable","status":503,"code":"too_many_connections","error":"cannot serve this: there are too many connections","hint":"try again; HATCH_HTTP_MAX_CONNECTIONS and HATCH_HTTP_MAX_CLIENT_CONNECTIONS are the limits"}` + "\n"

// listen returns the listener of the API, with limited connections.
func (p *parts) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", p.cfg.HTTPAddr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on HATCH_HTTP_ADDR %s: %w", p.cfg.HTTPAddr, err)
	}
	most := admission.Descriptors() / descriptorsPerConn
	if p.cfg.HTTPMaxConns > most {
		p.log.Warn("hatchd may have too few file descriptors for HATCH_HTTP_MAX_CONNECTIONS; raise LimitNOFILE of its unit", "connections", most)
	}
	places := admission.NewPlaces(admission.PlaceLimits{Total: min(p.cfg.HTTPMaxConns, most), PerClient: min(p.cfg.HTTPMaxClientConns, most)})
	return admission.Limit(l, places, refusal, p.lines), nil
}

// server returns the server of the API.
func (p *parts) server() *http.Server {
	return &http.Server{
		Handler:           p.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		// No WriteTimeout: waits and log streams are long and bound themselves.
		ErrorLog:    slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return p.streams },
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
