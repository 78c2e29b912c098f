// Package sender posts webhook messages over HTTP, to addresses on the public
// internet only.
//
// It checks the resolved address at dial time, so a host name that resolves
// differently the second time (DNS rebinding) cannot evade the check. It follows
// no redirects, uses no proxy, and reads only the first bytes of a response.
// Package webhook decides when to send what. Start at [New].
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

// Limits of one request.
const (
	dialTimeout = 5 * time.Second
	maxHeader   = 16 << 10 // bytes of the response's header
	maxRead     = 4 << 10  // bytes of the response's body, which hatchd discards
)

// Config has the settings of a sender.
type Config struct {
	AllowPrivate bool // also send to this host and to private networks
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

// Close closes idle connections.
func (s *Sender) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Send implements [webhook.Sender].
func (s *Sender) Send(ctx context.Context, m webhook.Message) (webhook.Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return webhook.Answer{}, errs.New(errs.Invalid, "invalid_url", "the URL cannot be used").WithCause(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", s.userAgent)
	req.Header.Set("Webhook-Id", m.ID)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(m.Timestamp.Unix(), 10))
	req.Header.Set("Webhook-Signature", m.Signature)
	resp, err := s.client.Do(req)
	if err != nil {
		return webhook.Answer{}, publicError(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxRead) // so that the connection can be reused
	return webhook.Answer{StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}, nil
}

var errPrivate = errors.New("not an address on the public internet")

// refusePrivate returns a dialer control function, called with the resolved address
// just before it is dialled. own lists the host's addresses, each with its network.
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

// publicError returns an error that the owner may read: it does not reveal which
// address a name resolves to here, or which resolver was used.
func publicError(err error) error {
	unavailable := func(code, text string) error { return errs.New(errs.Unavailable, code, "%s", text) }
	var noName *net.DNSError
	var badCertificate *tls.CertificateVerificationError
	var timedOut net.Error
	switch {
	case errors.Is(err, errPrivate):
		return unavailable("private_address", "the receiver's address is on this host or in a private network, which only HATCH_WEBHOOK_ALLOW_PRIVATE=true allows")
	case errors.As(err, &timedOut) && timedOut.Timeout():
		return unavailable("timeout", "the receiver did not answer in time")
	case errors.As(err, &noName):
		return unavailable("no_such_host", "the receiver's name cannot be resolved")
	case errors.As(err, &badCertificate):
		return unavailable("bad_certificate", "the receiver's certificate is not valid for its host name, or not trusted")
	case errors.Is(err, syscall.ECONNREFUSED):
		return unavailable("connection_refused", "the receiver refuses connections")
	}
	return unavailable("unreachable", "the receiver cannot be reached, or closed the connection")
}

// retryAfter parses a Retry-After header; 0 if there is none or it is not valid.
func retryAfter(header string) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
