package webhook

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// TestSignature compares with the example in the tests of the
// specification's own libraries.
func TestSignature(t *testing.T) {
	const secret, id, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", `{"test": 2432232314}`
	sign := func(secret, id string, at time.Time, body []byte) (string, error) {
		m := Message{ID: id, Timestamp: at, Body: body}
		err := m.Sign(secret)
		return m.Signature, err
	}
	at := time.Unix(1614265330, 999)
	got, err := sign(secret, id, at, []byte(body))
	if err != nil || got != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("%s, %v", got, err)
	}
	for name, other := range map[string]func() (string, error){
		"another id":   func() (string, error) { return sign(secret, id+"x", at, []byte(body)) },
		"another time": func() (string, error) { return sign(secret, id, at.Add(time.Second), []byte(body)) },
		"another body": func() (string, error) { return sign(secret, id, at, []byte(body+" ")) },
		"another key":  func() (string, error) { return sign(newSecret(), id, at, []byte(body)) },
	} {
		if changed, err := other(); err != nil || changed == got {
			t.Errorf("%s: %s, %v", name, changed, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	of := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, good := range []string{newSecret(), of(24), of(64)} {
		if err := checkSecret(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "hunter2", of(23), of(65), strings.TrimPrefix(of(32), "whsec_"), "whsec_" + strings.Repeat("!", 40)} {
		if err := checkSecret(bad); !errs.HasCode(err, "invalid_secret") || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if first, second := newSecret(), newSecret(); first == second {
		t.Error("two secrets are the same")
	}
}

func TestPublic(t *testing.T) {
	for _, text := range []string{"1.1.1.1", "172.15.255.255", "172.32.0.1", "192.167.1.1", "100.63.0.1", "2606:4700::1111", "::ffff:1.1.1.1"} {
		if !Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is not public", text)
		}
	}
	for _, text := range []string{
		"127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.2", "172.31.255.255", "192.168.1.1", "169.254.169.254",
		"100.64.0.1", "192.0.0.170", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "203.0.113.9",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254",
		"ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "2606:4700::1111%eth0",
	} {
		if Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is public", text)
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestURLs(t *testing.T) {
	for _, c := range []struct {
		url             string
		usually, within bool // accepted, where private addresses are allowed and where not
	}{
		{"https://example.com/hook?x=1", true, true},
		{"https://example.com:8443", true, true},
		{"https://1.1.1.1/", true, true},
		{"https://[2606:4700::1111]/", true, true},
		{"http://example.com/", false, true},
		{"https://127.0.0.1:9/", false, true},
		{"https://[::1]/", false, true},
		{"https://[::ffff:10.0.0.1]/", false, true},
		{"https://169.254.169.254/latest", false, true},
		{"https://localhost/", false, true},
		{"https://LOCALHOST./", false, true},
		{"https://a.localhost:80/", false, true},
		{"", false, false},
		{"https://", false, false},
		{"https://:443/", false, false},
		{"https://example.com:/", false, false},
		{"https://example.com:0/", false, false},
		{"https://example.com:99999/", false, false},
		{"https://user:hunter2@example.com/", false, false},
		{"https://example.com/#x", false, false},
		{"ftp://example.com/", false, false},
		{"file:///etc/passwd", false, false},
		{"example.com/hook", false, false},
		{"mailto:me@example.com", false, false},
		{"https://example.com/" + strings.Repeat("x", maxURL), false, false},
	} {
		for _, allowPrivate := range []bool{false, true} {
			want := c.usually
			if allowPrivate {
				want = c.within
			}
			err := checkURL(c.url, allowPrivate)
			if (err == nil) != want || err != nil && (!errs.HasCode(err, "invalid_url") || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("%.60s with private allowed %v: %v", c.url, allowPrivate, err)
			}
		}
	}
}

// FuzzURL looks for URLs that are accepted and should not be.
func FuzzURL(f *testing.F) {
	for _, seed := range []string{"https://example.com", "https://[::1]:443/x?y", "https://127.1", "https://0x7f.1", "https://a@b", "https:a", "https://\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if checkURL(text, false) != nil {
			return
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(text) > maxURL {
			t.Fatalf("%q is accepted", text)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && !Public(a) {
			t.Fatalf("%q is accepted", text)
		}
	})
}
