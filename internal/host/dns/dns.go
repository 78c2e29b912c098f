// Package dns forwards guests' questions to the host's resolvers.
//
// It listens on the gateway's address, over UDP and TCP, and asks the resolvers
// that resolv.conf names at that moment; hatchd itself asks, so that a resolver
// on the host's loopback works. It answers the network's guests only, has no zone
// and no cache, and limits the questions in flight and their rate, per guest and in all.
//
// Start at [Server]; forward.go asks, limit.go and rate.go limit.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Limits that keep guests from exhausting the host.
const (
	maxInFlight        = 1024             // questions
	maxInFlightOfGuest = 64               // of one guest
	maxConns           = 512              // TCP connections
	maxConnsOfGuest    = 16               // of one guest
	maxQuestionsOfConn = 128              // on one TCP connection
	readTimeout        = 2 * time.Second  // for a question over TCP
	idleTimeout        = 10 * time.Second // between questions over TCP
	maxUDPQuestion     = 1232             // bytes
)

// DefaultResolvConf names the host's resolvers.
const DefaultResolvConf = "/etc/resolv.conf"

// Config says which clients to answer and which resolvers to ask.
type Config struct {
	Address    netip.AddrPort // to listen on: the gateway, port 53
	Interface  string         // answers on this interface only; "" means any
	Clients    netip.Prefix   // answers these addresses only
	ResolvConf string         // "" means DefaultResolvConf
	Log        *slog.Logger
}

// Server forwards DNS questions. Its methods may be called from several
// goroutines at once.
type Server struct {
	cfg       Config
	upstreams *upstreams
	questions *limit
	rates     *rates

	mu      sync.Mutex
	running *running // nil while not started
}

// running are the two listeners of a started server.
type running struct {
	udp, tcp *dns.Server
	done     sync.WaitGroup

	mu     sync.Mutex
	failed error // why a listener stopped by itself
}

// New returns a server; it listens from Start on.
func New(cfg Config) *Server {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = DefaultResolvConf
	}
	return &Server{
		cfg:       cfg,
		upstreams: &upstreams{path: cfg.ResolvConf, self: cfg.Address.Addr()},
		questions: newLimit(maxInFlight, maxInFlightOfGuest),
		rates:     newRates(),
	}
}

// Start listens until Close. Starting a running server is no error.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil && s.running.check() == nil {
		return nil
	}
	if s.running != nil {
		s.running.close()
		s.running = nil
	}
	r, err := s.listen(ctx)
	if err != nil {
		return err
	}
	s.running = r
	return nil
}

// Close stops listening and waits for the questions in flight.
func (s *Server) Close() error {
	s.mu.Lock()
	r := s.running
	s.running = nil
	s.mu.Unlock()
	if r != nil {
		r.close()
	}
	return nil
}

// Check reports whether the server listens.
func (s *Server) Check() error {
	s.mu.Lock()
	r := s.running
	s.mu.Unlock()
	if r == nil {
		return errors.New("DNS is not served")
	}
	return r.check()
}

// Address returns the address that the server listens on; the port differs from
// Config's if that is 0.
func (s *Server) Address() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return netip.AddrPort{}
	}
	return s.running.udp.PacketConn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (s *Server) listen(ctx context.Context) (*running, error) {
	listen := net.ListenConfig{Control: s.bindToInterface}
	packets, err := listen.ListenPacket(ctx, "udp4", s.cfg.Address.String())
	if err != nil {
		return nil, fmt.Errorf("cannot listen for DNS on %s: %w", s.cfg.Address, err)
	}
	// The same port as UDP, if the configured one is 0.
	stream, err := listen.Listen(ctx, "tcp4", packets.LocalAddr().String())
	if err != nil {
		_ = packets.Close()
		return nil, fmt.Errorf("cannot listen for DNS over TCP on %s: %w", s.cfg.Address, err)
	}
	r := &running{
		udp: &dns.Server{PacketConn: packets, UDPSize: maxUDPQuestion},
		tcp: &dns.Server{
			Listener: newLimitedListener(stream, maxConns, maxConnsOfGuest), MaxTCPQueries: maxQuestionsOfConn,
			IdleTimeout: func() time.Duration { return idleTimeout },
		},
	}
	return r, r.start(s)
}

// start returns once both listeners serve.
func (r *running) start(handler dns.Handler) error {
	for _, srv := range []*dns.Server{r.udp, r.tcp} {
		started := make(chan struct{})
		srv.Handler, srv.ReadTimeout = handler, readTimeout
		srv.NotifyStartedFunc = func() { close(started) }
		stopped := make(chan struct{})
		r.done.Go(func() {
			defer close(stopped)
			if err := srv.ActivateAndServe(); err != nil {
				r.fail(err)
			}
		})
		select {
		case <-started:
		case <-stopped:
			r.close()
			return r.check()
		}
	}
	return nil
}

func (r *running) close() {
	// An error means that the listener has stopped already.
	_ = r.udp.Shutdown()
	_ = r.tcp.Shutdown()
	_ = r.udp.PacketConn.Close()
	_ = r.tcp.Listener.Close()
	r.done.Wait()
}

func (r *running) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = errors.Join(r.failed, fmt.Errorf("DNS is no longer served: %w", err))
}

func (r *running) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (s *Server) bindToInterface(_, _ string, raw syscall.RawConn) error {
	if s.cfg.Interface == "" {
		return nil
	}
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), s.cfg.Interface) })
	return errors.Join(err, failed)
}
