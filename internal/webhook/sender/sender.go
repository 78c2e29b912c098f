// Package sender posts webhooks' messages over HTTP, to addresses of the
// internet only.
//
// The address is judged when it is dialled, after its name was looked up: a
// name that leads elsewhere the second time gains nothing. It follows no
// redirects, uses no proxy, and reads no more than a little of an answer. When
// to send, and what, is the business of package webhook. Start at [New].
package sender

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/webhook"
)

// Bounds on one request.
const (
	dialTimeout = 5 * time.Second
	maxHeader   = 16 << 10 // bytes of an answer
	maxRead     = 4 << 10  // bytes of an answer's body, which nobody looks at
)

// Config says how to send.
type Config struct {
	AllowPrivate bool // addresses that are not of the internet, too
	Version      string
	Resolver     *net.Resolver  // nil: the host's
	RootCAs      *x509.CertPool // nil: the host's
}

// Sender posts messages. It is a [webhook.Sender].
type Sender struct {
	client    *http.Client
	userAgent string
}

var _ webhook.Sender = (*Sender)(nil)

// New makes a sender; Close ends its idle connections.
func New(cfg Config) *Sender {
	dialer := &net.Dialer{Timeout: dialTimeout, Resolver: cfg.Resolver}
	if !cfg.AllowPrivate {
		dialer.Control = refusePrivate(net.InterfaceAddrs)
	}
	return &Sender{
		userAgent: "Hatch-Webhook/" + cfg.Version,
		client: &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
				TLSHandshakeTimeout: dialTimeout, MaxResponseHeaderBytes: maxHeader, DisableCompression: true, ForceAttemptHTTP2: true,
				MaxIdleConns: 32, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
			},
		},
	}
}

// Close ends the connections that are kept for the next message.
func (s *Sender) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Send implements [webhook.Sender].
func (s *Sender) Send(ctx context.Context, m webhook.Message) (webhook.Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return webhook.Answer{}, errs.New(errs.Invalid, "invalid_url", "the address cannot be used").WithCause(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", s.userAgent)
	req.Header.Set("Webhook-Id", m.ID)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(m.Timestamp.Unix(), 10))
	req.Header.Set("Webhook-Signature", m.Signature)
	resp, err := s.client.Do(req)
	if err != nil {
		return webhook.Answer{}, worded(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxRead) // so that the connection can be used again
	return webhook.Answer{StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}, nil
}

var errPrivate = errors.New("not an address of the internet")

// refusePrivate returns what is called with the address itself, just before it
// is dialled. own lists the host's addresses, each with its network.
func refusePrivate(own func() ([]net.Addr, error)) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || !webhook.Public(to.Addr()) {
			return errPrivate
		}
		ours, err := own()
		if err != nil {
			return err
		}
		for _, a := range ours {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == to.Addr().Unmap() {
				return errPrivate
			}
		}
		return nil
	}
}

// worded says what went wrong without what the owner need not know: which
// address a name has here, or which resolver was asked.
func worded(err error) error {
	fault := func(code, text string) error { return errs.New(errs.Unavailable, code, "%s", text) }
	var noName *net.DNSError
	var badCertificate *tls.CertificateVerificationError
	var timedOut net.Error
	switch {
	case errors.Is(err, errPrivate):
		return fault("private_address", "the receiver's address is of this host or of a private network, which only HATCH_WEBHOOK_ALLOW_PRIVATE=true allows")
	case errors.As(err, &timedOut) && timedOut.Timeout():
		return fault("timeout", "the receiver did not answer in time")
	case errors.As(err, &noName):
		return fault("no_such_host", "the receiver's name cannot be resolved")
	case errors.As(err, &badCertificate):
		return fault("bad_certificate", "the receiver's certificate is not valid for its address, or not trusted")
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault("connection_refused", "the receiver refuses connections")
	}
	return fault("unreachable", "the receiver cannot be reached, or broke the connection off")
}

// retryAfter reads the header of that name; 0 when there is nothing to read.
func retryAfter(header string) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
