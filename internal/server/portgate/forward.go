package portgate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

const (
	firstPause = 50 * time.Millisecond // before a refused dial is repeated
	longPause  = 500 * time.Millisecond
	// acceptPause is waited when the host is out of file descriptors.
	acceptPause = 100 * time.Millisecond
)

// forward is one port of a VM.
type forward struct {
	gate      *Gate
	kind      *kind
	vmID      string
	to        network.Forward
	allowed   []netip.Prefix
	listeners []net.Listener
	places    *admission.Places
	cancel    context.CancelFunc // ends dials and connections
	done      sync.WaitGroup
}

func newForward(g *Gate, of *kind, vmID string, to network.Forward, allowed []netip.Prefix, listeners []net.Listener) *forward {
	ctx, cancel := context.WithCancel(context.Background())
	f := &forward{
		gate: g, kind: of, vmID: vmID, to: to, allowed: allowed, listeners: listeners, cancel: cancel,
		places: admission.NewPlaces(admission.PlaceLimits{Total: of.MaxConns, PerClient: max(1, of.MaxConns/2)}),
	}
	for _, l := range listeners {
		f.done.Go(func() { f.accept(ctx, l) })
	}
	return f
}

// is reports whether the forward is this one.
func (f *forward) is(to network.Forward) bool { return f.to.Equal(to) }

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
			f.gate.lines.Write(slog.LevelWarn, "cannot accept: "+f.kind.name, slog.String(logkey.VM, f.vmID), slog.Any(logkey.Error, err))
			if !backoff.Pause(ctx, acceptPause) {
				return
			}
			continue
		}
		f.admit(ctx, client.(*net.TCPConn))
	}
}

// admit serves the client if it may come in and there is a place for it; else it is
// closed at once.
func (f *forward) admit(ctx context.Context, conn *net.TCPConn) {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	client := admission.ClientAt(from)
	if !allowed(f.allowed, from) {
		f.gate.lines.Refused(f.kind.name+" refused: the client's address is not allowed", client, slog.String(logkey.VM, f.vmID))
		_ = conn.Close()
		return
	}
	if !admission.LeavesDescriptors(conn) {
		f.gate.lines.Refused(f.kind.name+" refused: hatchd has too few file descriptors left", client, slog.String(logkey.VM, f.vmID))
		_ = conn.Close()
		return
	}
	places, waiting, ok := f.take(client)
	if !ok {
		f.gate.lines.Refused(f.kind.name+" refused: too many connections", client, slog.String(logkey.VM, f.vmID))
		_ = conn.Close()
		return
	}
	f.done.Go(func() {
		defer places()
		f.serve(ctx, conn, Arrival{VMID: f.vmID, Forward: f.to, From: from}, waiting)
	})
}

// take takes the places of a connection. waiting frees the one that it needs only until
// the guest is reached, places frees all.
func (f *forward) take(client admission.Client) (places, waiting func(), ok bool) {
	var taken []func()
	places = func() {
		for _, free := range taken {
			free()
		}
	}
	for _, from := range []*admission.Places{f.places, f.kind.open, f.kind.waiting} {
		free, ok := from.Take(client)
		if !ok {
			places()
			return nil, nil, false
		}
		taken, waiting = append(taken, free), free
	}
	return places, waiting, true
}

func allowed(prefixes []netip.Prefix, from netip.Addr) bool {
	for _, p := range prefixes {
		if unmap(p).Contains(from.WithZone("")) {
			return true
		}
	}
	return false
}

// serve connects the client with the guest. It calls reached once the guest is reached.
func (f *forward) serve(ctx context.Context, client *net.TCPConn, a Arrival, reached func()) {
	defer client.Close()
	began, session := time.Now(), Session{Arrival: a}
	defer func() {
		session.Took = time.Since(began)
		f.gate.cfg.Ended(session)
	}()
	guest, err := f.reach(ctx, a)
	reached()
	if err != nil {
		session.Err = err
		if ctx.Err() == nil {
			f.gate.lines.Write(slog.LevelInfo, f.kind.name+" refused: the guest does not answer", slog.String(logkey.VM, f.vmID), slog.Any(logkey.Error, err))
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
	session.Bytes = join(client, &wakingConn{guest, func() error { return f.gate.cfg.Wake(ctx, a) }})
}

// reach wakes the guest if it sleeps, and dials it.
func (f *forward) reach(ctx context.Context, a Arrival) (vm.PortConn, error) {
	if err := f.gate.cfg.Wake(ctx, a); err != nil {
		return nil, err
	}
	return f.dial(ctx, a)
}

// wakingConn is a connection to a guest that may fall asleep meanwhile: a Write
// wakes the guest first. CloseWrite does not.
type wakingConn struct {
	vm.PortConn
	wake func() error
}

func (r *wakingConn) Write(p []byte) (int, error) {
	if err := r.wake(); err != nil {
		return 0, err
	}
	return r.PortConn.Write(p)
}

// dial reaches the guest; one that refuses may be booting, and is tried again.
func (f *forward) dial(ctx context.Context, a Arrival) (vm.PortConn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.gate.cfg.Timeout)
	defer cancel()
	for waits := backoff.New(firstPause, longPause); ; {
		conn, err := f.gate.cfg.Dial(ctx, a)
		if err == nil {
			return conn, nil
		}
		if !backoff.Pause(ctx, waits.Next()) {
			return nil, err
		}
	}
}

// join copies both ways until both have ended. An end of one direction is
// passed on, so that the other can still finish. It returns how many bytes were copied.
func join(a, b vm.PortConn) int64 {
	var both sync.WaitGroup
	var there, back int64
	both.Go(func() { there = pipe(a, b) })
	both.Go(func() { back = pipe(b, a) })
	both.Wait()
	return there + back
}

func pipe(to, from vm.PortConn) int64 {
	n, err := io.Copy(to, from)
	if err == nil && to.CloseWrite() == nil {
		return n
	}
	// Broken: the other direction must not wait for what cannot come.
	_ = to.Close()
	_ = from.Close()
	return n
}
