package httpapi_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

func TestOriginsThatMayCall(t *testing.T) {
	const console, other = "https://console.example.org", "https://evil.example.org"
	for _, c := range []struct {
		origins         []string
		origin, allowed string
	}{
		{nil, console, ""},
		{[]string{console}, console, console},
		{[]string{console}, other, ""},
		{[]string{console}, console + ".evil.org", ""},
		{[]string{console}, "", ""},
		{[]string{"*"}, other, "*"},
	} {
		h := httpapi.New(httpapi.Config{
			Audit:  &fakeAudit{},
			Access: fakeKeys{}, Keys: fakeKeys{}, Log: slog.New(slog.DiscardHandler), Origins: c.origins,
			Health: func(context.Context) api.Health { return api.Health{Status: "ok"} },
		})
		for _, method := range []string{"OPTIONS", "GET"} {
			r := httptest.NewRequestWithContext(t.Context(), method, "/keys", nil)
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if method == "OPTIONS" {
				r.Header.Set("Access-Control-Request-Method", "PATCH")
				r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,if-match")
			} else {
				r.Header.Set("Authorization", "Bearer "+goodKey)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			got := w.Header()
			if got.Get("Access-Control-Allow-Origin") != c.allowed || got.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s from %q, allowed %v: %d, %v", method, c.origin, c.origins, w.Code, got)
			}
			if c.allowed == "" {
				continue
			}
			if method == "OPTIONS" && (w.Code != 204 || !strings.Contains(got.Get("Access-Control-Allow-Headers"), "authorization") || !strings.Contains(got.Get("Access-Control-Allow-Methods"), "PATCH")) {
				t.Errorf("preflight: %d, %v", w.Code, got)
			}
			if method == "GET" && (w.Code != 200 || !strings.Contains(got.Get("Access-Control-Expose-Headers"), "Etag") && !strings.Contains(got.Get("Access-Control-Expose-Headers"), "ETag")) {
				t.Errorf("a request: %d, %v", w.Code, got)
			}
		}
	}
}
