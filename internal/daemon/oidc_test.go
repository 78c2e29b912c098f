package daemon_test

import (
	"crypto/rand"
	"crypto/rsa"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func TestBearersOfTokensAreUsers(t *testing.T) {
	secret, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := mockoidc.NewServer(secret)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String() + strings.TrimSuffix(mockoidc.IssuerBase, "/")
	w := &world{dir: t.TempDir(), settings: []string{
		"HATCH_SOCKET=off", "HATCH_OIDC_ISSUER=" + url, "HATCH_OIDC_AUDIENCE=hatch", "HATCH_OIDC_ROLE_CLAIM=groups", "HATCH_OIDC_ADMIN_VALUES=ops",
	}}
	w.start(t) // before the issuer
	if err := issuer.Start(l, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = issuer.Shutdown() })
	caller := func(changes jwt.MapClaims) *client.Client {
		claims := jwt.MapClaims{"iss": url, "aud": "hatch", "sub": "1", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "email": "alice@example.org", "email_verified": true}
		maps.Copy(claims, changes)
		token, err := issuer.Keypair.SignJWT(claims)
		if err != nil {
			t.Fatal(err)
		}
		return dial(t, w.base(t), token, func(*http.Transport) {})
	}
	alice := caller(nil)
	made, err := alice.CreateVM(t.Context(), api.CreateVM{Name: "web"}, client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := caller(jwt.MapClaims{"iat": time.Now().Unix() + 1}).GetVM(t.Context(), made.ID); err != nil || v.Name != "web" {
		t.Errorf("with another token: %+v, %v", v, err)
	}
	if _, err := caller(jwt.MapClaims{"sub": "2"}).GetVM(t.Context(), made.ID); !client.IsNotFound(err) {
		t.Errorf("another bearer: %v", err)
	}
	for e, err := range alice.ListEvents(t.Context(), client.EventOptions{VM: made.ID}) {
		if err != nil || e.Actor.Kind != api.ActorUser || e.Actor.Name != "alice@example.org" || !strings.HasPrefix(e.Actor.ID, "usr_") {
			t.Errorf("the first event is %+v, %v", e, err)
		}
		break
	}
	for name, changes := range map[string]jwt.MapClaims{"for others": {"aud": "other"}, "expired": {"exp": 1}} {
		if _, err := caller(changes).GetVM(t.Context(), made.ID); !client.IsUnauthenticated(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}
