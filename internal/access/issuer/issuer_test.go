package issuer

import (
	"crypto/rand"
	"crypto/rsa"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"
	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// provider is an issuer.
type provider struct {
	*mockoidc.MockOIDC
	asked atomic.Int32 // for its keys
	down  atomic.Bool
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	server, err := mockoidc.NewServer(nextKey(t))
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{MockOIDC: server}
	err = server.AddMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, mockoidc.JWKSEndpoint) {
				p.asked.Add(1)
			}
			if p.down.Load() {
				http.Error(w, "no", http.StatusBadGateway)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(l, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown() })
	return p
}

// keys are those of the issuers of all tests: to make one takes long.
var keys [3]*rsa.PrivateKey

// used counts the keys that were given out.
var used atomic.Int32

// nextKey returns another key than the last two calls did.
func nextKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	at := int(used.Add(1)) % len(keys)
	if keys[at] == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		keys[at] = key
	}
	return keys[at]
}

const audience = "hatch"

// trust returns a verifier of the provider's tokens.
func (p *provider) trust(t *testing.T) *Verifier {
	v := New(Config{Issuer: p.Issuer(), Audience: audience, UserClaim: EmailClaim, RoleClaim: "realm_access.roles", AdminValues: []string{"ops"}, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// claims are those of a good token, with changes; nil removes one.
func (p *provider) claims(changes jwt.MapClaims) jwt.MapClaims {
	now := time.Now()
	all := jwt.MapClaims{
		"iss": p.Issuer(), "aud": audience, "sub": "1234", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"email": "alice@example.org", "email_verified": true,
	}
	for name, value := range changes {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	return all
}

func (p *provider) sign(t *testing.T, changes jwt.MapClaims) string {
	t.Helper()
	token, err := p.Keypair.SignJWT(p.claims(changes))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestWhoTheBearerIs(t *testing.T) {
	p := newProvider(t)
	v := p.trust(t)
	for name, c := range map[string]struct {
		changes jwt.MapClaims
		want    access.Identity
	}{
		"verified":                 {nil, access.Identity{Name: "alice@example.org"}},
		"verified, as text":        {jwt.MapClaims{"email_verified": "true"}, access.Identity{Name: "alice@example.org"}},
		"not verified":             {jwt.MapClaims{"email_verified": false}, access.Identity{}},
		"without e-mail":           {jwt.MapClaims{"email": nil}, access.Identity{}},
		"an admin":                 {jwt.MapClaims{"realm_access": map[string]any{"roles": []string{"x", "ops"}}}, access.Identity{Name: "alice@example.org", Admin: true}},
		"one role, as text":        {jwt.MapClaims{"realm_access.roles": "ops"}, access.Identity{Name: "alice@example.org", Admin: true}},
		"other roles":              {jwt.MapClaims{"realm_access": map[string]any{"roles": []any{"dev", 7}}}, access.Identity{Name: "alice@example.org"}},
		"roles of another form":    {jwt.MapClaims{"realm_access": "ops"}, access.Identity{Name: "alice@example.org"}},
		"for several audiences":    {jwt.MapClaims{"aud": []string{"other", audience}}, access.Identity{Name: "alice@example.org"}},
		"valid for a minute since": {jwt.MapClaims{"nbf": time.Now().Add(-time.Minute).Unix()}, access.Identity{Name: "alice@example.org"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), p.sign(t, c.changes))
			if err != nil {
				t.Fatal(err)
			}
			if got.Issuer != p.Issuer() || got.Subject != "1234" || time.Until(got.ExpiresAt) < 50*time.Minute || got.Name != c.want.Name || got.Admin != c.want.Admin {
				t.Errorf("got %+v", got)
			}
		})
	}
	if asked := p.asked.Load(); asked != 1 {
		t.Errorf("the keys were asked for %d times", asked)
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	p, stranger := newProvider(t), newProvider(t)
	v := p.trust(t)
	good := p.sign(t, nil)
	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodNone, p.claims(nil)).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	symmetric, err := jwt.NewWithClaims(jwt.SigningMethodHS256, p.claims(nil)).SignedString([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	forged, err := stranger.Keypair.SignJWT(p.claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ token, code string }{
		"expired":             {p.sign(t, jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), "token_expired"},
		"without an end":      {p.sign(t, jwt.MapClaims{"exp": nil}), "token_expired"},
		"not yet valid":       {p.sign(t, jwt.MapClaims{"nbf": time.Now().Add(time.Hour).Unix()}), "invalid_token"},
		"for others":          {p.sign(t, jwt.MapClaims{"aud": "other"}), "invalid_token"},
		"for none":            {p.sign(t, jwt.MapClaims{"aud": nil}), "invalid_token"},
		"of another issuer":   {stranger.sign(t, nil), "invalid_token"},
		"without a subject":   {p.sign(t, jwt.MapClaims{"sub": ""}), "invalid_token"},
		"with a long subject": {p.sign(t, jwt.MapClaims{"sub": strings.Repeat("x", 256)}), "invalid_token"},
		"signed by another":   {forged, "invalid_token"},
		"unsigned":            {unsigned, "invalid_token"},
		"signed by a secret":  {symmetric, "invalid_token"},
		"changed":             {good[:len(good)-8] + "AAAAAAAA", "invalid_token"},
		"too large":           {p.sign(t, jwt.MapClaims{"x": strings.Repeat("x", access.MaxToken)}), "invalid_token"},
		"no token":            {"eyJ.eyJ.x", "invalid_token"},
		"empty":               {"", "invalid_token"},
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := v.Verify(t.Context(), c.token); !errs.Is(err, errs.Unauthenticated) || !errs.HasCode(err, c.code) {
				t.Errorf("got %+v, %v", id, err)
			}
		})
	}
}

func TestKeysRotate(t *testing.T) {
	p := newProvider(t)
	v := p.trust(t)
	old := p.sign(t, nil)
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	next, err := mockoidc.NewKeypair(nextKey(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Keypair = next
	if _, err := v.Verify(t.Context(), p.sign(t, nil)); err != nil {
		t.Errorf("a token with the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old); !errs.HasCode(err, "invalid_token") {
		t.Errorf("a token with the old key: %v", err)
	}
}

func TestTheIssuerIsAway(t *testing.T) {
	p := newProvider(t)
	p.down.Store(true)
	v := p.trust(t)
	token := p.sign(t, nil)
	for range 2 {
		if _, err := v.Verify(t.Context(), token); !errs.Is(err, errs.Unavailable) || !errs.HasCode(err, "issuer_unreachable") {
			t.Errorf("at start: %v", err)
		}
	}
	p.down.Store(false)
	v.mu.Lock()
	v.failed = time.Time{}
	v.mu.Unlock()
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("it is back: %v", err)
	}
	p.down.Store(true)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("away later, with a key that is known: %v", err)
	}
	next, err := mockoidc.NewKeypair(nextKey(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Keypair = next
	if _, err := v.Verify(t.Context(), p.sign(t, nil)); !errs.HasCode(err, "issuer_unreachable") {
		t.Errorf("away later, with a key that is not known: %v", err)
	}
}

// Clients can cause any number of questions by naming keys that there are not.
func TestQuestionsAreBounded(t *testing.T) {
	p, stranger := newProvider(t), newProvider(t)
	v := p.trust(t)
	for range 5 * askBurst {
		forged, err := stranger.Keypair.SignJWT(p.claims(nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), forged); err == nil {
			t.Fatal("it is accepted")
		}
	}
	if asked := p.asked.Load(); asked > askBurst+5 {
		t.Errorf("the issuer was asked %d times", asked)
	}
	if _, err := v.Verify(t.Context(), p.sign(t, nil)); err != nil {
		t.Errorf("a good token meanwhile: %v", err)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"issuer":"` + strings.Repeat("x", 2*maxAnswer)))
	}))
	defer server.Close()
	v := New(Config{Issuer: server.URL, Audience: audience, Log: slog.New(slog.DiscardHandler)})
	defer func() { _ = v.Close() }()
	if _, err := v.verifier(t.Context()); !errs.HasCode(err, "issuer_unreachable") {
		t.Errorf("got %v", err)
	}
}
