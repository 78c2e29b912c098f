// Package certs gives doors their TLS certificates: those of the operator's files, and
// others from an ACME server, for names that are served.
//
// certmagic does the work: it asks for a certificate when the first client names it,
// renews it, and keeps it in a directory. This package decides which names it may ask
// for. It also says which certificates clients must have, if any. It serves nothing itself, but [Certs.Challenges] has to see the requests of the
// port that the ACME server asks. Start at [Open].
package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// Config says where certificates come from: from files, from an ACME server, or both.
type Config struct {
	CertFile, KeyFile string // PEM; "" for none
	ClientCAFile      string // PEM: what clients' certificates must be signed with; "": clients need none
	ACME              *ACME  // nil: none
	// Serves returns an error for a name that is to have no certificate; needed with ACME.
	Serves func(ctx context.Context, name string) error
	Log    *slog.Logger
	Lines  *admission.Log // the lines that clients cause; needed with ACME
}

// ACME says how certificates are got.
type ACME struct {
	CA       string         // URL of the server's directory; "" means Let's Encrypt
	Roots    *x509.CertPool // that the server is trusted by; nil means the host's
	Email    string
	Dir      string // certificates and keys are kept in, mode 0700
	HTTPPort int    // of the server that Challenges is in; 0: there is none
	TLSPort  int    // of the server with the TLS config
	Domain   string // whose wildcard is got with DNS; unused without
	DNS      *DNS   // nil: none
}

// Certs has certificates. Close it after the servers.
type Certs struct {
	cfg      Config
	acme     *certmagic.Config // gets certificates when clients come; nil: none
	wildcard *certmagic.Config // gets the one of the domain at once
	issuer   *certmagic.ACMEIssuer
	cache    *certmagic.Cache

	file    *files[*tls.Certificate] // nil: none
	clients *files[*x509.CertPool]   // nil: any client
}

// Open returns certificates. Its error is about the files.
func Open(ctx context.Context, cfg Config) (*Certs, error) {
	c := &Certs{cfg: cfg}
	var err error
	if cfg.CertFile != "" {
		if c.file, err = openFiles(cfg.Log, func() (*tls.Certificate, error) { return readPair(cfg.CertFile, cfg.KeyFile) }, cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	if cfg.ClientCAFile != "" {
		if c.clients, err = openFiles(cfg.Log, func() (*x509.CertPool, error) { return readPool(cfg.ClientCAFile) }, cfg.ClientCAFile); err != nil {
			return nil, err
		}
	}
	if cfg.ACME == nil {
		return c, nil
	}
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(cert certmagic.Certificate) (*certmagic.Config, error) {
			if strings.HasPrefix(cert.Names[0], "*.") {
				return c.wildcard, nil
			}
			return c.acme, nil
		},
		Logger: zap.NewNop(),
	})
	a := cfg.ACME
	settings := certmagic.Config{
		Storage: &certmagic.FileStorage{Path: a.Dir}, Logger: zap.NewNop(), OnEvent: c.event,
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	}
	c.wildcard = certmagic.New(c.cache, settings)
	settings.OnDemand = &certmagic.OnDemandConfig{DecisionFunc: c.decide}
	c.acme = certmagic.New(c.cache, settings)
	template := certmagic.ACMEIssuer{
		CA: cmp.Or(a.CA, certmagic.LetsEncryptProductionCA), Email: a.Email, Agreed: true, TrustedRoots: a.Roots,
		DisableHTTPChallenge: a.HTTPPort == 0, DisableTLSALPNChallenge: a.TLSPort == 0, AltHTTPPort: a.HTTPPort, AltTLSALPNPort: a.TLSPort,
		Logger: zap.NewNop(),
	}
	template.TestCA = template.CA // there is no other to try first
	if a.DNS != nil {
		template.DNS01Solver = &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
			DNSProvider: a.DNS, Resolvers: []string{a.DNS.Server}, Logger: zap.NewNop(),
		}}
	}
	c.issuer = certmagic.NewACMEIssuer(c.acme, template)
	c.acme.Issuers = []certmagic.Issuer{c.issuer}
	if a.DNS != nil {
		c.wildcard.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(c.wildcard, template)}
		if err := c.wildcard.ManageAsync(ctx, []string{"*." + a.Domain}); err != nil {
			c.cache.Stop()
			return nil, fmt.Errorf("cannot keep certificates: %w", err)
		}
	}
	return c, nil
}

// Close ends renewals.
func (c *Certs) Close() {
	if c.cache != nil {
		c.cache.Stop()
	}
}

// TLS returns the configuration of a server.
func (c *Certs) TLS() *tls.Config {
	protocols := []string{"h2", "http/1.1"}
	if c.acme != nil {
		protocols = append(protocols, "acme-tls/1")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, GetCertificate: c.get}
	if c.clients == nil {
		return cfg
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	served := cfg.Clone()
	served.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		current := cfg.Clone()
		current.ClientCAs = c.clients.current()
		return current, nil
	}
	return served
}

// Challenges answers the ACME server's requests, and passes on all others.
func (c *Certs) Challenges(next http.Handler) http.Handler {
	if c.issuer == nil {
		return next
	}
	return c.issuer.HTTPChallengeHandler(next)
}

var errNoCertificate = errors.New("there is no certificate for this name")

func (c *Certs) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	var file *tls.Certificate
	if c.file != nil {
		file = c.file.current()
	}
	covers := file != nil && (hello.ServerName == "" || file.Leaf.VerifyHostname(hello.ServerName) == nil)
	switch {
	case covers, file != nil && c.acme == nil:
		return file, nil
	case c.acme == nil:
		return nil, errNoCertificate
	}
	return c.acme.GetCertificate(hello)
}

// decide allows a certificate for a name that is served and has none yet. Names directly
// below the domain have the wildcard's, if there is one.
func (c *Certs) decide(ctx context.Context, name string) error {
	label, below := strings.CutSuffix(name, "."+c.cfg.ACME.Domain)
	if c.cfg.ACME.DNS != nil && below && !strings.Contains(label, ".") {
		return errNoCertificate
	}
	return c.cfg.Serves(ctx, name)
}

// event logs what became of a request for a certificate.
func (c *Certs) event(ctx context.Context, event string, data map[string]any) error {
	name := slog.Any("host_name", data["identifier"])
	switch event {
	case "cert_obtained":
		c.cfg.Log.InfoContext(ctx, "certificate obtained", name)
	case "cert_failed":
		c.cfg.Lines.Write(slog.LevelWarn, "cannot obtain a certificate", name, slog.Any(logkey.Error, data["error"]))
	}
	return nil
}
