//nolint:bodyclose // world.do closes bodies at the end of a test, and connections close with theirs
package proxy

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
)

var refused = errs.New(errs.Unauthenticated, "unauthorized", "no")

// accept accepts exactly these credentials.
func accept(want route.Credentials, grant route.Grant) func(route.Credentials) (route.Grant, error) {
	return func(c route.Credentials) (route.Grant, error) {
		if c.From = want.From; c == want {
			return grant, nil
		}
		return route.Grant{}, refused
	}
}

func TestTheCredentialThatWasAcceptedStaysOutside(t *testing.T) {
	for name, c := range map[string]struct {
		want   route.Credentials
		header []string
		inside []string // what the guest gets of it
	}{
		"a key":             {route.Credentials{Key: "k"}, []string{"X-API-Key", "k"}, nil},
		"an access token":   {route.Credentials{Key: "k"}, []string{"X-Access-Token", "k"}, nil},
		"a bearer":          {route.Credentials{Key: "k"}, []string{"Authorization", "Bearer k"}, nil},
		"a password":        {route.Credentials{Username: "u", Password: "p"}, []string{"Authorization", "Basic dTpw"}, nil},
		"a cookie":          {route.Credentials{Cookie: "c"}, []string{"Cookie", "a=1; hatch_access=c; b=2"}, []string{"a=1; b=2"}},
		"the guest's own":   {route.Credentials{Key: "k"}, []string{"X-API-Key", "k", "Authorization", "Bearer guest", "Cookie", "s=1"}, []string{"Bearer guest", "s=1"}},
		"a key twice":       {route.Credentials{Key: "k"}, []string{"X-API-Key", "k", "X-Access-Token", "k", "Authorization", "Bearer k", "X-Copy", "k", "X-Own", "1"}, []string{"X-Own: 1"}},
		"a cookie, and own": {route.Credentials{Cookie: "c"}, []string{"Cookie", "hatch_access=c", "Authorization", "Bearer guest", "X-Access-Token", "own"}, []string{"Bearer guest", "own"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, say)
			w.target.Auth.Mode = route.Key
			w.allow = accept(c.want, route.Grant{})
			status, body, _ := w.get("/", c.header...)
			if status != http.StatusOK {
				t.Fatalf("got %d", status)
			}
			_, head, _ := strings.Cut(body, "\n")
			for _, gone := range []string{"hatch_access", ": k\r", "Bearer k", "dTpw"} {
				if strings.Contains(head, gone) {
					t.Errorf("the guest got %q", head)
				}
			}
			for _, kept := range c.inside {
				if !strings.Contains(head, kept) {
					t.Errorf("the guest did not get %q: %q", kept, head)
				}
			}
			w.allow = nil
			if status, _, h := w.get("/", c.header...); status != http.StatusUnauthorized || h.Get("WWW-Authenticate") == "" {
				t.Errorf("a stranger got %d, %v", status, h)
			}
		})
	}
}

// A key of the platform that is not needed for the route is not for the guest, either.
func TestNoKeyOfThePlatformReachesAGuest(t *testing.T) {
	key := "hatch_" + strings.Repeat("aB3", 14) + "x"
	basic := base64.StdEncoding.EncodeToString([]byte("u:" + key))
	for _, mode := range []route.Mode{route.Public, route.Key, route.Basic} {
		w := newWorld(t, say)
		w.target.Auth.Mode = mode
		w.allow = accept(route.Credentials{Cookie: "c"}, route.Grant{})
		for _, h := range [][2]string{{"X-API-Key", key}, {"X-Access-Token", key}, {"Authorization", "bearer  " + key}, {"Authorization", "Basic " + basic}} {
			status, body, _ := w.get("/", "Cookie", "hatch_access=c", "X-Kept", key[1:], h[0], h[1])
			if status != http.StatusOK || strings.Contains(body, key) || strings.Contains(body, basic) || !strings.Contains(body, "X-Kept: "+key[1:]) {
				t.Errorf("%s, %s: got %d, %s", mode, h[0], status, body)
			}
		}
	}
}

func TestAStrangerLearnsNothingOfANameWithoutARoute(t *testing.T) {
	w := newWorld(t, say)
	w.target.Auth.Mode, w.target.RouteID = route.Key, ""
	r := w.request(http.MethodGet, "/", nil)
	r.Host = "3000-vm-none.localhost"
	want := w.do(r)
	status, body, h := w.get("/", "X-API-Key", "wrong")
	if status != http.StatusNotFound || body != text(t, want.Body) || len(h) != len(want.Header) {
		t.Errorf("got %d, %s, %v", status, body, h)
	}
	if status, _, _ := w.get("/"); status != http.StatusNotFound {
		t.Errorf("without a key: got %d", status)
	}
	w.allow = accept(route.Credentials{Key: "k"}, route.Grant{})
	if status, _, _ := w.get("/", "X-API-Key", "k", "Cookie", "hatch_access=old"); status != http.StatusOK {
		t.Errorf("with the key: got %d", status)
	}
}

func TestASignedLink(t *testing.T) {
	w := newWorld(t, say)
	w.target.Auth.Mode = route.Key
	until := time.Now().Add(time.Hour)
	w.allow = accept(route.Credentials{Token: "t"}, route.Grant{Cookie: "c", Until: until})
	resp := w.do(w.request(http.MethodGet, "//evil.example/a%2Fb?x=%zz&hatch_token=t&y", nil))
	if got, want := resp.Header.Get("Location"), "http://web.localhost//evil.example/a%2Fb?x=%zz&y"; resp.StatusCode != http.StatusSeeOther || got != want {
		t.Errorf("got %d to %q, want %q", resp.StatusCode, got, want)
	}
	c := resp.Cookies()
	if len(c) != 1 || c[0].Name != "hatch_access" || c[0].Value != "c" || !c[0].HttpOnly || c[0].Domain != "" || c[0].SameSite != http.SameSiteLaxMode || c[0].Expires.Unix() != until.Unix() || c[0].Secure {
		t.Errorf("cookies %+v", c)
	}
	resp = w.do(w.request(http.MethodGet, "/?hatch%5Ftoken=t&x=hatch_token", nil))
	if got := resp.Header.Get("Location"); got != "http://web.localhost/?x=hatch_token" {
		t.Errorf("an escaped token leads to %q", got)
	}
	resp = w.do(w.request(http.MethodPost, "/p?hatch_token=t&x=1", strings.NewReader("body")))
	if body := text(t, resp.Body); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "POST web.localhost /p?x=1\n") || len(resp.Cookies()) != 1 {
		t.Errorf("a POST got %d, %s", resp.StatusCode, body)
	}
	w.target.Auth.Mode = route.Public
	if _, body, _ := w.get("/?hatch_token=t&x=1"); !strings.HasPrefix(body, "GET web.localhost /?x=1\n") {
		t.Errorf("a public route's guest got %s", body)
	}
}

func TestABrowserIsAskedForAPassword(t *testing.T) {
	w := newWorld(t, say)
	w.target.Auth.Mode = route.Basic
	if status, _, h := w.get("/"); status != http.StatusUnauthorized || !strings.HasPrefix(h.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("got %d, %v", status, h)
	}
}

// A client that has used up its tries gets no further check of a key, and all the same
// its cookie is good.
func TestTriesAreBounded(t *testing.T) {
	w := newWorld(t, say, func(c *Config) { c.Trusted = loopback })
	w.target.Auth.Mode = route.Key
	checks := 0
	w.allow = func(c route.Credentials) (route.Grant, error) {
		checks++
		if c.Cookie == "c" {
			return route.Grant{}, nil
		}
		return route.Grant{}, refused
	}
	status, tries := 0, 0
	for ; status != http.StatusTooManyRequests && tries < 100; tries++ {
		status, _, _ = w.get("/", "X-API-Key", "wrong", "X-Forwarded-For", "192.0.2.1")
	}
	if tries == 100 || checks >= tries {
		t.Errorf("%d tries, %d checks", tries, checks)
	}
	if status, _, _ := w.get("/", "Cookie", "hatch_access=c", "X-Forwarded-For", "192.0.2.1"); status != http.StatusOK {
		t.Errorf("with its cookie: got %d", status)
	}
	if status, _, _ := w.get("/", "X-API-Key", "wrong", "X-Forwarded-For", "192.0.2.2"); status != http.StatusUnauthorized {
		t.Errorf("another client: got %d", status)
	}
}

// Tries are wrong credentials of a kind that the route accepts, once for a request, and
// also of a name that leads nowhere: it looks like one that leads to a VM.
func TestWhatIsATry(t *testing.T) {
	for name, c := range map[string]struct {
		mode   route.Mode
		host   string
		header []string
		tries  bool
	}{
		"a wrong key":                 {route.Key, "web.localhost", []string{"X-API-Key", "wrong"}, true},
		"of an unknown name":          {route.Key, "3000-none.localhost", []string{"X-API-Key", "wrong"}, true},
		"none, of an unknown name":    {route.Key, "3000-none.localhost", nil, false},
		"beside an accepted one":      {route.Key, "web.localhost", []string{"X-API-Key", "own", "X-Access-Token", "k"}, false},
		"a password where keys count": {route.Key, "web.localhost", []string{"Authorization", "Basic dTpw"}, false},
		"a wrong password":            {route.Basic, "web.localhost", []string{"Authorization", "Basic dTpw"}, true},
		"a key where passwords count": {route.Basic, "web.localhost", []string{"X-API-Key", "own"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, say, func(c *Config) { c.Trusted = loopback })
			w.target.Auth.Mode = c.mode
			w.allow = accept(route.Credentials{Key: "k"}, route.Grant{})
			for range 100 {
				r := w.request(http.MethodGet, "/", nil, append(c.header, "X-Forwarded-For", "192.0.2.1")...)
				r.Host = c.host
				w.do(r)
			}
			if wait := w.proxy.tries.Wait(admission.ClientAt(netip.MustParseAddr("192.0.2.1"))); wait > 0 != c.tries {
				t.Errorf("the next try is in %s", wait)
			}
		})
	}
}

func TestTheDoorsCookieIsFoundAmongOthers(t *testing.T) {
	w := newWorld(t, say)
	w.target.Auth.Mode = route.Key
	w.allow = accept(route.Credentials{Cookie: "c"}, route.Grant{})
	if status, body, _ := w.get("/", "Cookie", "hatch_access=tossed; a=1; hatch_access=c"); status != http.StatusOK || strings.Contains(body, "hatch_access") {
		t.Errorf("got %d, %s", status, body)
	}
	if status, _, _ := w.get("/", "Cookie", strings.Repeat("hatch_access=tossed; ", 1000)+"hatch_access=c"); status != http.StatusUnauthorized {
		t.Errorf("with a thousand others: got %d", status)
	}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestForwardedHeaders(t *testing.T) {
	forged := []string{
		"X-Forwarded-For", "198.51.100.9, 192.0.2.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "app.example", "X-Forwarded-Port", "8443",
		"X-Forwarded-User", "admin", "X_Forwarded_For", "1.2.3.4", "X-Real-IP", "1.2.3.4", "Forwarded", "for=1.2.3.4", "Connection", "X-Forwarded-For, X-Hop", "X-Hop", "1",
	}
	for name, c := range map[string]struct {
		trusted []netip.Prefix
		want    map[string]string
	}{
		"of any client": {nil, map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "web.localhost", "X-Forwarded-Port": "80",
			"X-Real-Ip": "127.0.0.1", "Forwarded": `for=127.0.0.1;host="web.localhost";proto=http`,
		}},
		"of a trusted proxy": {loopback, map[string]string{
			"X-Forwarded-For": "198.51.100.9, 192.0.2.7, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example", "X-Forwarded-Port": "443",
			"X-Real-Ip": "192.0.2.7", "Forwarded": `for=192.0.2.7;host="app.example";proto=https`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var got http.Header
			w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }), func(cfg *Config) { cfg.Trusted = c.trusted })
			w.get("/", forged...)
			for key, want := range c.want {
				if values := got.Values(key); len(values) != 1 || values[0] != want {
					t.Errorf("%s: %q, want %q", key, values, want)
				}
			}
			for _, key := range []string{"X-Forwarded-User", "X_Forwarded_For", "X-Hop", "Connection"} {
				if got.Get(key) != "" {
					t.Errorf("the guest got %s: %s", key, got.Get(key))
				}
			}
		})
	}
}

func FuzzWithoutToken(f *testing.F) {
	f.Add("a=1&hatch_token=t&b=2")
	f.Add("hatch_token")
	f.Add("hatch%5ftoken=t;hatch_token=t")
	f.Fuzz(func(t *testing.T, query string) {
		got := queryWithoutToken(query)
		if len(got) > len(query) {
			t.Errorf("%q became %q", query, got)
		}
		if values, _ := url.ParseQuery(got); values.Has(route.TokenParam) {
			t.Errorf("%q became %q", query, got)
		}
	})
}
