package httpapi

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
)

type localKey struct{}

// WithLocal returns the context of a connection from a process of this host that needs
// no key, with the id of its user.
func WithLocal(ctx context.Context, uid uint32) context.Context {
	return context.WithValue(ctx, localKey{}, uid)
}

// ambient returns the caller that is known without a key: by what its connection tells,
// and not by what it sends. A web page can make a browser, or a program that forwards
// to hatchd's socket, send requests with that. So each way to be known without a key
// belongs here, where all of them pass [door.guard].
func (d *door) ambient(r *http.Request) (caller access.Principal, by event.Actor, known bool, err error) {
	uid, local := r.Context().Value(localKey{}).(uint32)
	if !local || r.Header.Get("Authorization") != "" || r.Header.Get("X-Api-Key") != "" {
		return access.Principal{}, event.Actor{}, false, nil
	}
	if err := d.guard(r); err != nil {
		return access.Principal{}, event.Actor{}, false, err
	}
	caller = d.access.Local(uid)
	return caller, event.Actor{Kind: event.Local, Name: caller.KeyName}, true, nil
}

// guard refuses requests that pages of other sites cause. What only reads is refused,
// too: a WebSocket begins so, and CORS may show answers to pages. A page may also have
// let its own name lead to this host, so that its requests are not foreign: it has a
// name of the DNS.
func (d *door) guard(r *http.Request) error {
	for _, name := range proxyHeaders {
		if r.Header.Get(name) != "" {
			return errs.New(errs.Forbidden, "proxied", "cannot serve this without an API key: a reverse proxy has passed it on (%s)", name).
				WithHint("send a key; what a proxy passes on comes from its clients, not from this host")
		}
	}
	asChange := r.Clone(r.Context())
	asChange.Method = http.MethodPost
	if d.crossOrigin.Check(asChange) != nil || !localName(r.Host) {
		return errs.New(errs.Forbidden, "cross_site", "cannot serve this without an API key: a page of another site may have sent it").
			WithHint("send a key, or the request without a browser, for the host name localhost")
	}
	return nil
}

// proxyHeaders are what reverse proxies add: one in front of a socket would make all of
// its clients known without a key.
var proxyHeaders = []string{"Forwarded", "Via", "X-Real-Ip", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// localName reports whether a request's host is a name that no web site has: of this
// host, or one without a dot.
func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback() || err != nil && !strings.ContainsAny(host, ".")
}
