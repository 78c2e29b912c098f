package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// max1xx bounds the answers that a guest may send before the one that ends a request.
const max1xx = 16

// writeTimeout bounds one write to a client, of at most a buffer's size, so that one
// that does not read cannot keep a VM in use.
const writeTimeout = 2 * time.Minute

// How long a client that still sends its body is read on after an answer that came
// before the body's end: closing the socket with unread bytes would reset the
// connection, and the client would lose the answer.
const (
	lingerIdle  = 2 * time.Second
	lingerLimit = 10 * time.Second
)

// visitKey is the key of a request's visit in its context.
type visitKey struct{}

func visitIn(ctx context.Context) *visit { return ctx.Value(visitKey{}).(*visit) }

// forward passes the request to the guest, and the answer back.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, v *visit) {
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), visitKey{}, v))
	defer cancel(nil)
	v.cancel = cancel
	defer v.endWait() // an answer may never come
	control := http.NewResponseController(w)
	var sent *incoming
	if r.ContentLength != 0 {
		_ = control.EnableFullDuplex() // else net/http would hold an answer until the body's end; HTTP/2 needs it not
		sent = &incoming{ReadCloser: r.Body, trailer: r.Trailer}
		r.Body = sent
	}
	p.reverse.ServeHTTP(w, r.WithContext(v.watch(ctx)))
	if sent != nil && r.ProtoMajor == 1 {
		sent.drop(control, r)
	}
}

// watch bounds the time that the guest has for the head of its answer once it has the
// whole request.
func (v *visit) watch(ctx context.Context) context.Context {
	if v.target.ResponseTimeout == 0 {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) {
		v.deadline.Do(func() {
			v.timer = time.AfterFunc(v.target.ResponseTimeout, func() { v.cancel(lateAnswer) })
		})
	}})
}

// endWait ends what watch began, once there is an answer or cannot be one.
func (v *visit) endWait() {
	v.deadline.Do(func() {})
	if v.timer != nil {
		v.timer.Stop()
	}
}

// rewrite makes the request that the guest gets.
func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	v := visitIn(pr.In.Context())
	pr.Out.URL.RawQuery = queryWithoutToken(pr.In.URL.RawQuery) // else as the client wrote it
	pr.Out.Trailer = pr.In.Trailer                              // filled in at the body's end
	h := pr.Out.Header
	withoutSecrets(h, v.used)
	withoutCookie(h)
	p.setForwarded(pr, v)
}

// setForwarded tells the guest who its client is. Clients cannot: what looks like these
// headers is removed, also in the spelling that programs take for the same. Of a trusted
// proxy, only those are believed that every such proxy is told to set.
func (p *Proxy) setForwarded(pr *httputil.ProxyRequest, v *visit) {
	in, h := pr.In, pr.Out.Header
	for name := range h {
		if isForwarded(name) {
			delete(h, name)
		}
	}
	peer := peerOf(in)
	host, forwardedFor := in.Host, peer
	if addr, err := netip.ParseAddr(peer); err == nil && p.trusts(addr.Unmap().WithZone("")) {
		forwardedFor = after(in.Header["X-Forwarded-For"], peer)
		host = cmp.Or(in.Header.Get("X-Forwarded-Host"), host)
	}
	h.Set("X-Forwarded-For", forwardedFor)
	h.Set("X-Forwarded-Host", host)
	h.Set("X-Forwarded-Port", portOf(host, v.proto))
	h.Set("X-Forwarded-Proto", v.proto)
	h.Set("X-Real-Ip", v.client.String())
	h.Set("Forwarded", element(v.client.String(), host, v.proto))
}

func isForwarded(name string) bool {
	plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(plain, "x-forwarded-") || plain == "forwarded" || plain == "x-real-ip"
}

// after appends a hop to those that trusted proxies have listed.
func after(hops []string, hop string) string {
	return strings.Join(append(slices.Clone(hops), hop), ", ")
}

// element names a client in the form of RFC 7239.
func element(client, host, proto string) string {
	if strings.Contains(client, ":") {
		client = `"[` + client + `]"`
	}
	return fmt.Sprintf("for=%s;host=%q;proto=%s", client, host, proto)
}

func portOf(host, proto string) string {
	if _, port, err := net.SplitHostPort(host); err == nil {
		return port
	}
	if proto == "https" {
		return "443"
	}
	return "80"
}

// modify completes the head of the guest's answer.
func (p *Proxy) modify(resp *http.Response) error {
	v := visitIn(resp.Request.Context())
	v.endWait()
	if v.grant.Cookie != "" {
		setCookie(resp.Header, v)
	}
	if socket, ok := resp.Body.(io.ReadWriteCloser); ok && strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		resp.Body = struct{ io.ReadWriteCloser }{socket} // without CloseWrite: a WebSocket ends both ways at once
	}
	p.mark(resp.Header, v)
	return nil
}

// mark adds what the door says about every answer.
func (p *Proxy) mark(h http.Header, v *visit) {
	if v.slept > 0 {
		h.Add("Server-Timing", fmt.Sprintf("wake;dur=%.1f", float64(v.slept.Microseconds())/1000))
	}
	if p.cfg.HSTS > 0 && v.proto == "https" {
		h.Set("Strict-Transport-Security", fmt.Sprintf("max-age=%d", int(p.cfg.HSTS.Seconds())))
	}
}

// fail answers a request that has no answer of the guest.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	if cause, ok := errors.AsType[*refusal](context.Cause(r.Context())); ok {
		err = cause
	} else if r.Context().Err() != nil || errors.Is(err, errBody) {
		panic(http.ErrAbortHandler) // the client has gone, or sends nonsense
	}
	if _, ok := errors.AsType[*refusal](err); !ok {
		err = badAnswer
	}
	p.answer(w, r, visitIn(r.Context()), err)
}

// notInTrailers are headers that some programs take from trailers, too, where they would
// pass what removes them from heads.
var notInTrailers = []string{string(byKey), string(byAccess), string(byHeader), string(byCookie), "Host"}

// errBody marks an error of the client's body.
var errBody = errors.New("cannot read the request's body")

// incoming is a request's body whose end is noticed.
type incoming struct {
	io.ReadCloser
	trailer http.Header // filled in at the body's end, and sent on then
	begun   atomic.Bool
	ended   atomic.Bool // by its end or an error
}

// Read implements io.Reader.
func (b *incoming) Read(p []byte) (int, error) {
	b.begun.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		maps.DeleteFunc(b.trailer, func(name string, _ []string) bool { return isForwarded(name) || slices.Contains(notInTrailers, name) })
		b.ended.Store(true)
		if err != io.EOF { //nolint:errorlint // readers return it bare
			err = fmt.Errorf("%w: %w", errBody, err)
		}
	}
	return n, err
}

// drop reads what the client still sends after the answer, for a while.
func (b *incoming) drop(control *http.ResponseController, r *http.Request) {
	if b.ended.Load() || !b.begun.Load() && r.Header.Get("Expect") != "" {
		return
	}
	_ = control.Flush() // it has the answer before
	buf := make([]byte, 32<<10)
	for end := time.Now().Add(lingerLimit); !b.ended.Load() && time.Now().Before(end); {
		if control.SetReadDeadline(time.Now().Add(lingerIdle)) != nil {
			return
		}
		if _, err := b.Read(buf); err != nil {
			return
		}
	}
}

// writer sets a deadline for each write.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	visit   *visit
	stream  bool      // of HTTP/2, which is cut by a deadline although nothing is written
	bounded time.Time // when the deadline was last set

	provisional int // answers
}

// Unwrap gives http.ResponseController the writer below.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter. It ends a request with too many provisional
// answers.
func (w *writer) WriteHeader(status int) {
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		if w.provisional++; w.provisional > max1xx && w.visit.cancel != nil {
			w.visit.cancel(badAnswer)
			return
		}
	}
	w.bound()
	defer w.unbound()
	w.ResponseWriter.WriteHeader(status)
}

// Write writes, and gives up after writeTimeout.
func (w *writer) Write(b []byte) (int, error) {
	w.bound()
	defer w.unbound()
	return w.ResponseWriter.Write(b)
}

// FlushError implements what http.ResponseController looks for.
func (w *writer) FlushError() error {
	w.bound()
	defer w.unbound()
	return w.control.Flush()
}

// bound sets the deadline, if that was not done just now: it costs more than a look at
// the clock. It fails only without a connection.
func (w *writer) bound() {
	if now := time.Now(); now.Sub(w.bounded) > time.Second {
		w.bounded = now
		_ = w.control.SetWriteDeadline(now.Add(writeTimeout))
	}
}

// boundEnd sets the deadline for what net/http writes after the handler, such as the last
// chunk: the one of the last write may have passed in a silence before the body's end.
func (w *writer) boundEnd() {
	if !w.stream {
		w.bounded = time.Time{}
		w.bound()
	}
}

func (w *writer) unbound() {
	if w.stream {
		w.bounded = time.Time{}
		_ = w.control.SetWriteDeadline(time.Time{}) // as above
	}
}

// buffers are for copying answers.
type buffers struct{ pool sync.Pool }

const bufferBytes = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferBytes]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferBytes)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buf []byte) { b.pool.Put((*[bufferBytes]byte)(buf)) }
