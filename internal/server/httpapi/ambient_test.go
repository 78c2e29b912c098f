package httpapi_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

// keysOf notes whose keys are listed.
type keysOf struct {
	fakeKeys
	scopes *[]access.Scope
}

func (k keysOf) Keys(_ context.Context, scope access.Scope) ([]access.Key, error) {
	*k.scopes = append(*k.scopes, scope)
	return nil, nil
}

func TestProcessesOfThisHostNeedNoKey(t *testing.T) {
	var scopes []access.Scope
	h := httpapi.New(httpapi.Config{
		Access: fakeKeys{}, Keys: keysOf{scopes: &scopes}, Audit: &fakeAudit{}, Log: slog.New(slog.DiscardHandler), Origins: []string{"*"},
		Health: func(context.Context) api.Health { return api.Health{Status: "ok"} },
	})
	for name, c := range map[string]struct {
		host    string
		headers map[string]string
		network bool // the request comes from no process that is known
		status  int
		scope   access.Scope
	}{
		"no key":                     {host: "localhost", status: 200, scope: access.Owner(access.AdminID)},
		"any name without a dot":     {host: "hatch", status: 200, scope: access.Owner(access.AdminID)},
		"an address of this host":    {host: "127.0.0.1:80", status: 200, scope: access.Owner(access.AdminID)},
		"that key's user":            {host: "localhost", headers: map[string]string{"Authorization": "Bearer " + goodKey}, status: 200, scope: access.Owner(goodAcc)},
		"the key in its other place": {host: "localhost", headers: map[string]string{"X-API-Key": goodKey}, status: 200, scope: access.Owner(goodAcc)},
		"a wrong key":                {host: "localhost", headers: map[string]string{"Authorization": "Bearer hk_wrong"}, status: 401},
		"a key of another form":      {host: "localhost", headers: map[string]string{"Authorization": "Digest x"}, status: 401},
		"a page of another site":     {host: "localhost", headers: map[string]string{"Sec-Fetch-Site": "cross-site"}, status: 403},
		"a page of another origin":   {host: "localhost", headers: map[string]string{"Origin": "http://evil.example"}, status: 403},
		"a site that leads here":     {host: "evil.example", status: 403},
		"a key, from anywhere":       {host: "evil.example", headers: map[string]string{"Authorization": "Bearer " + goodKey, "Origin": "http://evil.example"}, status: 200, scope: access.Owner(goodAcc)},
		"from a reverse proxy":       {host: "localhost", headers: map[string]string{"X-Forwarded-For": "192.0.2.1"}, status: 403},
		"through a proxy":            {host: "localhost", headers: map[string]string{"Via": "1.1 proxy"}, status: 403},
		"a key, through a proxy":     {host: "localhost", headers: map[string]string{"Authorization": "Bearer " + goodKey, "Via": "1.1 proxy"}, status: 200, scope: access.Owner(goodAcc)},
		"the network":                {host: "localhost", network: true, status: 401},
	} {
		t.Run(name, func(t *testing.T) {
			scopes = nil
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/keys", nil)
			if r.RemoteAddr = "@"; !c.network {
				r = r.WithContext(httpapi.WithLocal(r.Context(), 0))
			}
			r.Host = c.host
			for name, value := range c.headers {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || c.status == 200 && (len(scopes) != 1 || scopes[0] != c.scope) {
				t.Errorf("got %d for %v: %s", w.Code, scopes, w.Body)
			}
		})
	}
}

func TestHeadersOfAllAnswers(t *testing.T) {
	h := httpapi.New(httpapi.Config{
		Access: fakeKeys{}, Keys: fakeKeys{}, Audit: &fakeAudit{}, Log: slog.New(slog.DiscardHandler), HSTS: time.Hour,
		Health: func(context.Context) api.Health { return api.Health{Status: "ok"} },
	})
	for _, c := range []struct {
		path, key string
		tls       bool
	}{{"/keys", goodKey, false}, {"/keys", goodKey, true}, {"/keys", "", false}, {"/none", goodKey, false}, {"/docs", goodKey, true}, {"/healthz", "", false}} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", c.path, nil)
		if r.TLS = nil; c.tls {
			r.TLS = &tls.ConnectionState{}
		}
		r.Header.Set("X-API-Key", c.key)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Header()
		for header, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			"Strict-Transport-Security": map[bool]string{true: "max-age=3600"}[c.tls],
		} {
			if got.Get(header) != want {
				t.Errorf("%s: %s is %q, want %q", c.path, header, got.Get(header), want)
			}
		}
		if policy := got.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: the policy is %q", c.path, policy)
		}
	}
}
