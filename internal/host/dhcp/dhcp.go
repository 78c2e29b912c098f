// Package dhcp serves guests their addresses.
//
// It answers known MACs only, each with the address of its lease in the database;
// it has no range of its own. Replies go to the guest's MAC, so that other guests
// never see them, even when the request asks for a broadcast.
//
// It makes no leases (internal/store) and filters no packets (internal/host/nft).
// Start at [Server]; reply.go makes the replies.
package dhcp

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

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
)

// DefaultLeaseTime is how long guests keep an address before they renew. They
// always get the same address again.
const DefaultLeaseTime = 24 * time.Hour

// Config is what replies contain for every guest.
type Config struct {
	Network   network.Network
	MTU       int           // bytes; 0 leaves it to the guest
	LeaseTime time.Duration // 0 means DefaultLeaseTime
	Log       *slog.Logger
}

// Lease is what replies contain for one guest.
type Lease struct {
	MAC      net.HardwareAddr
	Address  netip.Addr
	Hostname string // "" sends none
}

// Server answers DHCP on one bridge. Its methods may be called from several
// goroutines at once.
type Server struct {
	cfg Config

	mu     sync.Mutex
	leases map[[6]byte]Lease
	conns  *conns // nil while not started
	failed error  // why the server stopped by itself
	done   chan struct{}
}

// conns are the sockets of a running server.
type conns struct {
	in  net.PacketConn // requests
	out *frameSender   // replies
}

// New returns a server; it listens from Start on.
func New(cfg Config) *Server {
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = DefaultLeaseTime
	}
	return &Server{cfg: cfg, leases: map[[6]byte]Lease{}}
}

// Start listens on the bridge, and on no other interface, until Close.
// Starting a running server is no error.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil && s.failed == nil {
		return nil
	}
	c, err := open(ctx, s.cfg.Network.Bridge)
	if err != nil {
		return err
	}
	if s.conns != nil {
		s.conns.close()
	}
	s.conns, s.failed, s.done = c, nil, make(chan struct{})
	go s.serve(c, s.done)
	return nil
}

// Close stops listening and waits for the last reply.
func (s *Server) Close() error {
	s.mu.Lock()
	c, done := s.conns, s.done
	s.conns = nil
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	err := c.close()
	<-done
	return err
}

// Check reports whether the server listens.
func (s *Server) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return errors.New("DHCP is not served")
	}
	return s.failed
}

// Set adds a guest's lease, or replaces that of the same MAC.
func (s *Server) Set(l Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[[6]byte(l.MAC)] = l
}

// Delete removes the lease of a MAC, if there is one.
func (s *Server) Delete(mac net.HardwareAddr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leases, [6]byte(mac))
}

func (s *Server) lease(mac net.HardwareAddr) (Lease, bool) {
	if len(mac) != 6 {
		return Lease{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.leases[[6]byte(mac)]
	return l, ok
}

// serve answers requests until the socket is closed.
func (s *Server) serve(c *conns, done chan struct{}) {
	defer close(done)
	buf := make([]byte, 1500)
	for {
		n, _, err := c.in.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.fail(c, fmt.Errorf("DHCP is no longer served: %w", err))
			return
		}
		r := s.answer(buf[:n])
		if r == nil {
			continue
		}
		if err := c.out.send(r); err != nil && !errors.Is(err, net.ErrClosed) {
			s.cfg.Log.Warn("cannot answer a DHCP request", logkey.MAC, r.to.String(), logkey.Error, err)
		}
	}
}

func (s *Server) fail(c *conns, err error) {
	s.cfg.Log.Error("DHCP stopped", logkey.Error, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == c {
		s.failed = err
	}
}

func open(ctx context.Context, iface string) (*conns, error) {
	listen := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), iface) })
		return errors.Join(err, failed)
	}}
	in, err := listen.ListenPacket(ctx, "udp4", ":67")
	if err != nil {
		return nil, fmt.Errorf("cannot listen for DHCP on %s: %w", iface, err)
	}
	out, err := newFrameSender(iface)
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	return &conns{in: in, out: out}, nil
}

func (c *conns) close() error { return errors.Join(c.in.Close(), c.out.Close()) }
