// Package proxy is the door to guests' HTTP: it looks up the request's host name,
// checks who comes, wakes the VM if it sleeps, and passes request and answer on.
//
// It decides neither which names there are nor who may follow them: [Names] does. It
// reaches guests through [Guests] only, and counts a use of a VM for each request, not
// for each connection. Requests and answers of any size and length pass in pieces;
// what clients and guests can hold meanwhile is bounded. Start at [Proxy.ServeHTTP];
// forward.go has the headers, guest.go the way to a guest, answer.go the door's own
// answers, access.go the credentials.
package proxy

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// Names knows which host names lead where, and who may follow them.
type Names interface {
	// Resolve returns errs.NotFound for a name that leads nowhere.
	Resolve(ctx context.Context, host string) (route.Target, error)
	// Authorize returns errs.Unauthenticated, or errs.NotFound, for credentials that do
	// not suffice.
	Authorize(ctx context.Context, t route.Target, c route.Credentials) (route.Grant, error)
	// Watch returns a context that also ends when the key that was granted does.
	Watch(ctx context.Context, g route.Grant) (watched context.Context, stop func())
}

// Guests leads to the ports of guests. Who may follow a route has been checked.
type Guests interface {
	// Hold counts a use of the VM by a peer until release is called. The other methods
	// get the context that it returns, so that a wake is known to be for the peer.
	Hold(ctx context.Context, vmID, peer string) (held context.Context, release func())
	// Current returns the number of the machine that the VM runs on, without waiting;
	// ok is false if it is not known to run. Each start and wake gives another number.
	Current(vmID string) (machine uint64, ok bool)
	// Awake is Current after the VM was woken, if it slept and wake is set. Otherwise
	// its error says why the VM does not run.
	Awake(ctx context.Context, vmID string, wake bool) (machine uint64, err error)
	// Dial connects to a port. The connection is no use of the VM.
	Dial(ctx context.Context, vmID string, port int) (vm.PortConn, error)
}

// Config says what the door leads to, and what clients can use of it.
type Config struct {
	Names  Names
	Guests Guests

	// WakeTimeout bounds how long a request waits until its VM is awake and the port
	// accepts connections; 0 means one minute.
	WakeTimeout time.Duration
	// Trusted are the networks of reverse proxies whose X-Forwarded headers are
	// believed; nil means none.
	Trusted []netip.Prefix
	// Open bounds the requests in progress, and a quarter may wait for a wake; the VMs of
	// one user get half of both. The zero value means 4096, and 512 of a client.
	Open admission.PlaceLimits
	// Refuse writes the door's own answers, of a status and with a code; nil: the door does.
	Refuse func(w http.ResponseWriter, r *http.Request, status int, code string)
	// HSTS is for how long browsers are told to use only TLS; 0 means that they are not.
	HSTS time.Duration

	Log   *slog.Logger
	Lines *admission.Log // the lines that clients and guests cause; nil: to Log
}

// flushDelay is how long a part of an answer waits for the next one: most answers are
// complete by then, and go out in one piece.
const flushDelay = 2 * time.Millisecond

const defaultWakeTimeout = time.Minute

var defaultOpen = admission.PlaceLimits{Total: 4096, PerClient: 512}

// Proxy is an http.Handler. Close it after the last request.
type Proxy struct {
	cfg     Config
	reverse *httputil.ReverseProxy
	http1   *http.Transport
	h2c     *http.Transport
	open    *admission.Places // requests in progress
	waiting *admission.Places // those that wait for a wake
	users   *admission.Shares // of requests in progress, by the VM's owner
	wakers  *admission.Shares // of those that wait, in the same way
	tries   *admission.Tries  // of credentials

	mu    sync.Mutex
	wakes map[string]*wake // in progress, by VM id
	wg    sync.WaitGroup   // of wakes
}

// New returns a door.
func New(cfg Config) *Proxy {
	cfg.WakeTimeout = cmp.Or(cfg.WakeTimeout, defaultWakeTimeout)
	if cfg.Open == (admission.PlaceLimits{}) {
		cfg.Open = defaultOpen
	}
	if cfg.Lines == nil {
		cfg.Lines = admission.NewLog(cfg.Log)
	}
	total, waits := int64(cfg.Open.Total), max(1, cfg.Open.Total/4)
	p := &Proxy{
		cfg: cfg, wakes: map[string]*wake{}, tries: admission.NewTries(),
		open:    admission.NewPlaces(cfg.Open),
		waiting: admission.NewPlaces(admission.PlaceLimits{Total: waits, PerClient: max(1, cfg.Open.PerClient/4)}),
		users:   admission.NewShares(total, max(1, total/2)),
		wakers:  admission.NewShares(int64(waits), max(1, int64(waits)/2)),
	}
	p.http1, p.h2c = p.newTransport(route.HTTP1), p.newTransport(route.H2C)
	p.reverse = &httputil.ReverseProxy{
		Rewrite: p.rewrite, Transport: guestTrips{p}, ModifyResponse: p.modify, ErrorHandler: p.fail,
		FlushInterval: flushDelay,                                                      // but none for events and for bodies without a length
		BufferPool:    &buffers{}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), // fail has what matters
	}
	return p
}

// Close ends wakes that requests wait for, and closes the connections to guests that no
// request uses.
func (p *Proxy) Close() {
	p.mu.Lock()
	for _, w := range p.wakes {
		w.cancel()
	}
	p.mu.Unlock()
	p.wg.Wait()
	p.http1.CloseIdleConnections()
	p.h2c.CloseIdleConnections()
}

// visit is what the door knows of one request.
type visit struct {
	client netip.Addr // the first address that no trusted proxy has
	proto  string     // http or https, as the client sees it
	target route.Target
	grant  route.Grant
	used   presented // which was accepted, and is not for the guest

	slept time.Duration // how long the request waited for a wake; 0: it did not
	since time.Time     // of the end of that wake

	cancel   context.CancelCauseFunc // of the request, with its answer
	deadline sync.Once               // of the answer's head: set, or not needed any more
	timer    *time.Timer             // set by deadline; nil: not needed
}

// ServeHTTP serves one request for a guest.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := p.visitOf(r)
	out := &writer{ResponseWriter: w, control: http.NewResponseController(w), visit: v, stream: r.ProtoMajor > 1}
	defer out.boundEnd()
	w = out
	done, err := p.admit(r, v)
	if err != nil {
		p.answer(w, r, v, err)
		return
	}
	defer done()
	if v.grant.Cookie != "" && isNavigation(r) {
		setCookie(w.Header(), v)
		http.Redirect(w, r, v.proto+"://"+r.Host+withoutToken(r.URL), http.StatusSeeOther)
		return
	}
	watched, stop := p.cfg.Names.Watch(r.Context(), v.grant)
	defer stop()
	held, release := p.cfg.Guests.Hold(watched, v.target.VMID, v.peer(r))
	defer release()
	p.forward(w, r.WithContext(held), v)
}

// peer says who uses the VM, and by which name.
func (v *visit) peer(r *http.Request) string { return "route " + r.Host + " from " + v.client.String() }

// admit finds the request's target, and checks that the client may have it now. The
// caller must call done once the request is served.
func (p *Proxy) admit(r *http.Request, v *visit) (done func(), err error) {
	if r.Method == http.MethodConnect {
		return nil, noTunnel
	}
	free, ok := p.open.Take(admission.ClientAt(v.client))
	if !ok {
		return nil, tooMany
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	if v.target, err = p.cfg.Names.Resolve(r.Context(), r.Host); err != nil {
		if statusOf(err) == http.StatusNotFound && slices.ContainsFunc(presentedBy(r), func(c presented) bool { return c.guesses(route.Key) }) {
			p.tries.Failed(admission.ClientAt(v.client)) // as if there were a VM of this name
		}
		return nil, err
	}
	if err := p.authorize(r, v); err != nil {
		return nil, err
	}
	keep, short := p.users.Take(v.target.OwnerID, 1)
	if short != admission.Enough {
		return nil, tooMany
	}
	return func() { keep(0); free() }, nil
}
