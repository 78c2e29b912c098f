// Package issuer verifies tokens of one trusted OpenID Connect issuer, and says who their
// bearers are.
//
// It makes no users and knows no rights; package access does. It sends no one to a login
// page, and keeps no secret: clients get their tokens by themselves. The issuer need not
// answer when hatchd starts: it is asked when the first token comes. Start at [New] and
// [Verifier.Verify].
package issuer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Config says whose tokens are trusted, and what is read from them.
type Config struct {
	Issuer      string // URL, exactly as tokens have it
	Audience    string // that tokens must be for: the client's id
	UserClaim   string // names the user
	RoleClaim   string // a text or list; with dots, a claim in others; "" for none
	AdminValues []string
	Log         *slog.Logger
}

// EmailClaim is the claim that names a user only if the issuer has verified it.
const EmailClaim = "email"

// retryInterval is how long an issuer that did not answer is not asked again.
const retryInterval = 5 * time.Second

// Verifier verifies tokens. Close it at the end.
type Verifier struct {
	cfg       Config
	client    *http.Client
	transport *http.Transport

	asking chan struct{} // capacity 1: one request asks the issuer how it signs

	mu      sync.Mutex
	known   *oidc.IDTokenVerifier // nil until the issuer has answered
	failure error                 // why it did not
	failed  time.Time
}

// New makes a verifier. It asks nothing yet.
func New(cfg Config) *Verifier {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: askTimeout, IdleConnTimeout: time.Minute}
	return &Verifier{
		cfg: cfg, transport: transport, asking: make(chan struct{}, 1),
		client: &http.Client{Timeout: askTimeout, Transport: newBounded(transport)},
	}
}

// Close closes idle connections to the issuer.
func (v *Verifier) Close() error {
	v.transport.CloseIdleConnections()
	return nil
}

// Issuer returns the trusted issuer.
func (v *Verifier) Issuer() string { return v.cfg.Issuer }

// Verify returns who the bearer of a token is. Errors: errs.Unauthenticated with code
// invalid_token or token_expired; errs.Unavailable with code issuer_unreachable.
func (v *Verifier) Verify(ctx context.Context, token string) (access.Identity, error) {
	if len(token) > access.MaxToken {
		return access.Identity{}, invalid("it is larger than %d bytes", access.MaxToken)
	}
	if !v.mayBeOurs(token) { // nothing is asked for tokens of others
		return access.Identity{}, invalid("it is not of the issuer %s", v.cfg.Issuer)
	}
	known, err := v.verifier(ctx)
	if err != nil {
		return access.Identity{}, err
	}
	var silent bool
	verified, err := known.Verify(context.WithValue(ctx, silentKey{}, &silent), token)
	if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired {
		return access.Identity{}, errs.New(errs.Unauthenticated, "token_expired", "the token has expired").WithHint("get another one from the issuer")
	}
	switch {
	case silent:
		return access.Identity{}, unreachable(err)
	case err != nil:
		return access.Identity{}, invalid("its signature, audience or times are wrong").WithCause(err)
	}
	return v.identity(verified)
}

func invalid(format string, args ...any) *errs.Error {
	return errs.New(errs.Unauthenticated, "invalid_token", "the token is not valid: %s", fmt.Sprintf(format, args...)).
		WithHint("get one from the issuer that this server trusts, for its audience (HATCH_OIDC_ISSUER, HATCH_OIDC_AUDIENCE), or use an API key")
}

func unreachable(cause error) error {
	return errs.New(errs.Unavailable, "issuer_unreachable", "cannot check the token now: its issuer does not answer").
		WithHint("try again, or use an API key").WithRetryAfter(retryInterval).WithCause(cause)
}

// mayBeOurs reports whether a token, which is not verified yet, names our issuer.
func (v *Verifier) mayBeOurs(token string) bool {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return false
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	return json.Unmarshal(text, &claims) == nil && claims.Issuer == v.cfg.Issuer
}

// verifier returns what knows the issuer's keys, and asks the issuer for it the first time.
func (v *Verifier) verifier(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	select {
	case v.asking <- struct{}{}: // an answer takes askTimeout at most
		defer func() { <-v.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	v.mu.Lock()
	known, failure, failed := v.known, v.failure, v.failed
	v.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if failure != nil && time.Since(failed) < retryInterval {
		return nil, unreachable(failure)
	}
	known, err := v.discover(ctx)
	v.mu.Lock()
	v.known, v.failure, v.failed = known, err, time.Now()
	v.mu.Unlock()
	if err != nil {
		v.cfg.Log.Warn("the issuer of tokens does not say how it signs; callers with a token are refused", "issuer", v.cfg.Issuer, logkey.Error, err)
		return nil, unreachable(err)
	}
	return known, nil
}

// discover asks the issuer where its keys are. Its context is not the request's, so that
// a caller who leaves fails no other.
func (v *Verifier) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	asking := oidc.ClientContext(context.WithoutCancel(ctx), v.client)
	provider, err := oidc.NewProvider(asking, v.cfg.Issuer)
	if err != nil {
		return nil, err
	}
	var how struct {
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&how); err != nil {
		return nil, err
	}
	keys := keySet{oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), v.client), how.Keys)}
	return oidc.NewVerifier(v.cfg.Issuer, keys, &oidc.Config{
		ClientID:             v.cfg.Audience,
		SupportedSigningAlgs: slices.DeleteFunc(how.Algorithms, func(a string) bool { return !slices.Contains(algorithms, a) }),
	}), nil
}

// algorithms are those that only the issuer's private key can sign by.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

type silentKey struct{}

// keySet notes in the context whether a signature could not be checked because the issuer
// does not answer.
type keySet struct{ remote *oidc.RemoteKeySet }

// VerifySignature implements oidc.KeySet.
func (k keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.remote.VerifySignature(ctx, token)
	if silent, ok := ctx.Value(silentKey{}).(*bool); ok && errors.Is(err, errSilent) {
		*silent = true
	}
	return payload, err
}
