package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// idleTimeout is how long a connection to a guest is kept without a request. It is
// shorter than what servers keep theirs for, so that hardly a request is sent just when
// a guest closes, and no connection is left once a VM may fall asleep.
const idleTimeout = time.Second

// maxHeader bounds the head of an answer, in bytes.
const maxHeader = 64 << 10

// dialTimeout bounds one attempt to connect with a guest.
const dialTimeout = 10 * time.Second

// Waits between attempts to connect with a guest that has just woken.
const (
	firstWait = 20 * time.Millisecond
	longWait  = 500 * time.Millisecond
)

// openPart is the part of WakeTimeout for which a guest that was woken may refuse
// connections.
const openPart = 4

// maxTrips is how often a request is tried when the VM's machine has ended between the
// look for it and the connection.
const maxTrips = 3

// newTransport returns the connections to guests that speak one protocol. A host of
// these is one port of one machine: see addressOf.
func (p *Proxy) newTransport(protocol route.Upstream) *http.Transport {
	t := &http.Transport{
		DialContext: p.dial, DisableCompression: true,
		MaxIdleConns: 4096, MaxIdleConnsPerHost: 1024, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: maxHeader, ExpectContinueTimeout: time.Second,
		Protocols: new(http.Protocols),
	}
	if protocol == route.H2C {
		t.Protocols.SetUnencryptedHTTP2(true)
		t.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 512 << 10, MaxReceiveBufferPerConnection: 8 << 20}
	} else {
		t.Protocols.SetHTTP1(true)
	}
	return t
}

// tripKey is the key of a trip in the context of a connection's beginning.
type tripKey struct{}

// trip is what dial needs. It may go on when the request has ended, whose visit it must
// not read.
type trip struct {
	target  route.Target
	patient time.Time                           // until when a refusal is tried again; zero: it is not
	onEnd   func(end func()) (keep func() bool) // of the request
}

// guestTrips sends requests to guests.
type guestTrips struct{ *Proxy }

// errDial marks an error of a connection's beginning: the guest has got nothing.
var errDial = errors.New("cannot connect with the guest")

// RoundTrip implements http.RoundTripper. It leaves the request's body open, which the
// next trip needs; the reverse proxy closes it.
func (p guestTrips) RoundTrip(r *http.Request) (*http.Response, error) {
	v := visitIn(r.Context())
	transport := p.http1
	if v.target.Upstream == route.H2C {
		transport = p.h2c
	}
	if r.Body != nil {
		r.Body = io.NopCloser(r.Body)
	}
	for trip := 1; ; trip++ {
		machine, err := p.awake(r.Context(), v)
		if err != nil {
			return nil, err
		}
		r.URL.Scheme, r.URL.Host = "http", addressOf(v.target, machine)
		resp, err := transport.RoundTrip(r.WithContext(context.WithValue(r.Context(), tripKey{}, p.tripOf(r.Context(), v))))
		if err == nil || !errors.Is(err, errDial) {
			return resp, err
		}
		if current, ok := p.cfg.Guests.Current(v.target.VMID); ok && current == machine || trip == maxTrips {
			return nil, p.whyClosed(r.Context(), v)
		}
	}
}

func (p *Proxy) tripOf(ctx context.Context, v *visit) trip {
	t := trip{target: v.target, onEnd: func(end func()) func() bool { return context.AfterFunc(ctx, end) }}
	if v.slept > 0 {
		t.patient = v.since.Add(p.cfg.WakeTimeout / openPart)
	}
	return t
}

// whyClosed returns the answer for a port that did not accept a connection.
func (p *Proxy) whyClosed(ctx context.Context, v *visit) error {
	if _, err := p.cfg.Guests.Awake(ctx, v.target.VMID, false); err != nil { // paused, or just gone
		return notAwake(err)
	}
	return portClosed
}

// addressOf names a port of a machine: connections to it are not used for another
// machine of the same VM, which knows nothing of them, and wake a VM only if all that use
// them may. dial has the target from the trip.
func addressOf(t route.Target, machine uint64) string {
	wakes := "w"
	if !t.AutoWake {
		wakes = "n"
	}
	return net.JoinHostPort(t.VMID+"."+strconv.FormatUint(machine, 10)+wakes, strconv.Itoa(t.Port))
}

// dial connects with a guest. One that was woken for the request may refuse for a while:
// its program has to go on first.
func (p *Proxy) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	waits := backoff.New(firstWait, longWait)
	t := ctx.Value(tripKey{}).(trip)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer t.onEnd(cancel)()
	for {
		bounded, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := p.cfg.Guests.Dial(bounded, t.target.VMID, t.target.Port)
		cancel()
		if err == nil {
			return &guestConn{conn, p, t.target}, nil
		}
		if time.Now().After(t.patient) || !backoff.Pause(ctx, waits.Next()) {
			return nil, fmt.Errorf("%w: %w", errDial, err)
		}
	}
}

// guestConn is a connection to a guest that may be put to sleep meanwhile: a Write wakes
// it first. CloseWrite does not.
type guestConn struct {
	vm.PortConn
	proxy  *Proxy
	target route.Target
}

// Write implements io.Writer.
func (c *guestConn) Write(b []byte) (int, error) {
	if _, ok := c.proxy.cfg.Guests.Current(c.target.VMID); !ok {
		v := &visit{target: c.target}
		if _, err := c.proxy.awake(context.Background(), v); err != nil {
			return 0, err
		}
	}
	return c.PortConn.Write(b)
}

// wake is a wake in progress.
type wake struct {
	cancel  context.CancelFunc
	done    chan struct{}
	machine uint64 // these two once done is closed
	err     error
}

// awake returns the machine that the target's VM runs on. If the VM sleeps, requests for
// it wait for one wake, which goes on when they end.
func (p *Proxy) awake(ctx context.Context, v *visit) (uint64, error) {
	id := v.target.VMID
	if machine, ok := p.cfg.Guests.Current(id); ok {
		return machine, nil
	}
	if !v.target.AutoWake {
		machine, err := p.cfg.Guests.Awake(ctx, id, false)
		return machine, notAwake(err)
	}
	free, ok := p.waiting.Take(admission.ClientAt(v.client))
	if !ok {
		return 0, tooMany
	}
	defer free()
	keep, short := p.wakers.Take(v.target.OwnerID, 1)
	if short != admission.Enough {
		return 0, tooMany
	}
	defer keep(0)
	began := time.Now()
	w := p.wake(ctx, id)
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-w.done:
		v.since = time.Now()
		v.slept += max(v.since.Sub(began), time.Microsecond)
		return w.machine, notAwake(w.err)
	}
}

// wake returns the wake of a VM that is in progress, or begins one.
func (p *Proxy) wake(ctx context.Context, id string) *wake {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.wakes[id]; w != nil {
		return w
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.WakeTimeout)
	w := &wake{cancel: cancel, done: make(chan struct{})}
	p.wakes[id] = w
	p.wg.Go(func() {
		defer cancel()
		w.machine, w.err = p.cfg.Guests.Awake(ctx, id, true)
		p.mu.Lock()
		delete(p.wakes, id)
		p.mu.Unlock()
		close(w.done)
	})
	return w
}

// notAwake returns the answer for a VM that does not run.
func notAwake(err error) error {
	switch {
	case errs.Is(err, errs.NotFound):
		return unknown
	case errs.Is(err, errs.Conflict):
		return asleep
	case errs.HasCode(err, quota.Code):
		return overQuota
	}
	if err != nil {
		return cannotWake
	}
	return nil
}
