package sshgate

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

const (
	firstPause = 50 * time.Millisecond // before a refused dial is repeated
	longPause  = 500 * time.Millisecond
	// acceptPause is waited when the host is out of file descriptors.
	acceptPause = 100 * time.Millisecond
)

// forward is one VM's port.
type forward struct {
	cfg       Config
	vmID      string
	target    netip.AddrPort
	listeners []net.Listener
	places    chan struct{}      // one for each connection that is under way
	cancel    context.CancelFunc // ends dials and connections
	done      sync.WaitGroup
}

func newForward(cfg Config, vmID string, target netip.AddrPort, listeners []net.Listener) *forward {
	ctx, cancel := context.WithCancel(context.Background())
	f := &forward{
		cfg: cfg, vmID: vmID, target: target, listeners: listeners,
		places: make(chan struct{}, cfg.MaxConns), cancel: cancel,
	}
	for _, l := range listeners {
		f.done.Go(func() { f.accept(ctx, l) })
	}
	return f
}

func (f *forward) close() {
	f.cancel()
	closeAll(f.listeners)
	f.done.Wait()
}

func (f *forward) accept(ctx context.Context, l net.Listener) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.cfg.Log.Warn("cannot accept an SSH connection", logkey.VM, f.vmID, logkey.Error, err)
			if !pause(ctx, acceptPause) {
				return
			}
			continue
		}
		f.admit(ctx, client.(*net.TCPConn))
	}
}

// admit serves the client if it may come in and there is room; else it is
// closed at once.
func (f *forward) admit(ctx context.Context, client *net.TCPConn) {
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if !allowed(f.cfg.Allowed, from) {
		f.cfg.Log.Info("SSH refused: the client's address is not allowed", logkey.VM, f.vmID, logkey.Client, from.String())
		_ = client.Close()
		return
	}
	select {
	case f.places <- struct{}{}:
	default:
		f.cfg.Log.Warn("SSH refused: too many connections", logkey.VM, f.vmID, logkey.Client, from.String(), "most", cap(f.places))
		_ = client.Close()
		return
	}
	f.done.Go(func() {
		defer func() { <-f.places }()
		f.serve(ctx, client)
	})
}

func allowed(prefixes []netip.Prefix, from netip.Addr) bool {
	for _, p := range prefixes {
		if unmap(p).Contains(from.WithZone("")) {
			return true
		}
	}
	return false
}

func (f *forward) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	guest, err := f.reach(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.cfg.Log.Info("SSH refused: the guest does not answer", logkey.VM, f.vmID, logkey.Error, err)
		}
		return
	}
	defer guest.Close()
	// Closing both ends both copies.
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = guest.Close()
	})
	defer stop()
	join(client, &wakingConn{Conn: guest, wake: func() error { return f.cfg.Wake(ctx, f.vmID) }})
}

// reach wakes the guest if it sleeps, and dials it.
func (f *forward) reach(ctx context.Context) (net.Conn, error) {
	if err := f.cfg.Wake(ctx, f.vmID); err != nil {
		return nil, err
	}
	return f.dial(ctx)
}

// wakingConn is a connection to a guest that may fall asleep meanwhile: a Write
// wakes the guest first.
type wakingConn struct {
	net.Conn
	wake func() error
}

func (r *wakingConn) Write(p []byte) (int, error) {
	if err := r.wake(); err != nil {
		return 0, err
	}
	return r.Conn.Write(p)
}

// CloseWrite passes an end on; it does not wake the guest.
func (r *wakingConn) CloseWrite() error {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return r.Close()
}

// dial reaches the guest; one that refuses may be booting, and is tried again.
func (f *forward) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	for wait := firstPause; ; wait = min(2*wait, longPause) {
		conn, err := f.cfg.Dial(ctx, f.vmID, f.target)
		if err == nil {
			return conn, nil
		}
		if !pause(ctx, wait) {
			return nil, err
		}
	}
}

// join copies both ways until both have ended. An end of one direction is
// passed on, so that the other can still finish.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { pipe(a, b) })
	both.Go(func() { pipe(b, a) })
	both.Wait()
}

func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		return
	}
	// Broken: the other direction must not wait for what cannot come.
	_ = to.Close()
	_ = from.Close()
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
