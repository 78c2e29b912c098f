package route

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestDecideFillsInWhatADraftLeavesOpen(t *testing.T) {
	s, err := Draft{Spec: Spec{Port: 80}}.Decide()
	if err != nil {
		t.Fatal(err)
	}
	if s.Auth.Mode != Public || s.Upstream != HTTP1 {
		t.Errorf("decided %+v", s)
	}
	r := New("acc_a", "vm_a", s)
	if len(r.Subdomain) != 12 || strings.Trim(r.Subdomain, "0123456789abcdef") != "" || !r.Served() || !strings.HasPrefix(r.ID, IDPrefix) {
		t.Errorf("made %+v", r)
	}
}

func TestDecideHashesThePassword(t *testing.T) {
	s, err := Draft{Spec{Port: 80, Auth: Auth{Mode: Basic, Username: "me"}}, "correct horse"}.Decide()
	if err != nil || bcrypt.CompareHashAndPassword(s.Auth.Hash, []byte("correct horse")) != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	again, err := Draft{Spec: s}.Decide()
	if err != nil || string(again.Auth.Hash) != string(s.Auth.Hash) {
		t.Errorf("without a password: %+v, %v, want the same hash", again, err)
	}
	s.Auth = Auth{Mode: Key, Hash: s.Auth.Hash}
	if s, err = (Draft{Spec: s}).Decide(); err != nil || s.Auth.Hash != nil {
		t.Errorf("mode key has hash %q, %v", s.Auth.Hash, err)
	}
}

func TestDecideRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		field string
		draft Draft
	}{
		"no port":              {"target_port", Draft{}},
		"high port":            {"target_port", Draft{Spec: Spec{Port: 65536}}},
		"upper case":           {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: "Web"}}},
		"two labels":           {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: "a.b"}}},
		"hyphen at the end":    {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: "web-"}}},
		"64 letters":           {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: strings.Repeat("a", 64)}}},
		"reserved":             {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: "api"}}},
		"implicit":             {"subdomain", Draft{Spec: Spec{Port: 80, Subdomain: "8080-web"}}},
		"two names":            {"domain", Draft{Spec: Spec{Port: 80, Subdomain: "web", Domain: "www.example.org"}}},
		"one label":            {"domain", Draft{Spec: Spec{Port: 80, Domain: "example"}}},
		"an address":           {"domain", Draft{Spec: Spec{Port: 80, Domain: "192.0.2.1"}}},
		"an empty label":       {"domain", Draft{Spec: Spec{Port: 80, Domain: "a..example.org"}}},
		"long domain":          {"domain", Draft{Spec: Spec{Port: 80, Domain: strings.Repeat("a.", 126) + "org"}}},
		"protocol":             {"upstream", Draft{Spec: Spec{Port: 80, Upstream: "h3"}}},
		"long timeout":         {"timeouts.response_header_seconds", Draft{Spec: Spec{Port: 80, ResponseTimeout: 2 * time.Hour}}},
		"mode":                 {"auth.mode", Draft{Spec: Spec{Port: 80, Auth: Auth{Mode: "none"}}}},
		"username without use": {"auth", Draft{Spec: Spec{Port: 80, Auth: Auth{Mode: Key, Username: "me"}}}},
		"no username":          {"auth.username", Draft{Spec{Port: 80, Auth: Auth{Mode: Basic}}, "correct horse"}},
		"colon":                {"auth.username", Draft{Spec{Port: 80, Auth: Auth{Mode: Basic, Username: "a:b"}}, "correct horse"}},
		"no password":          {"auth.password", Draft{Spec: Spec{Port: 80, Auth: Auth{Mode: Basic, Username: "me"}}}},
		"long password":        {"auth.password", Draft{Spec{Port: 80, Auth: Auth{Mode: Basic, Username: "me"}}, strings.Repeat("x", 73)}},
	} {
		_, err := c.draft.Decide()
		if e, ok := errs.As(err); !ok || e.Kind != errs.Invalid || e.Field != c.field || !strings.HasPrefix(e.Message, c.field+": ") {
			t.Errorf("%s: %v, want an error of %s", name, err, c.field)
		}
	}
	if len(reserved) != 34 {
		t.Errorf("%d names are reserved, want 34", len(reserved))
	}
}

func TestParseAllowed(t *testing.T) {
	all, err := ParseAllowed([]string{"192.0.2.77/24", "2001:db8::/32", "198.51.100.1"})
	if err != nil || all[0].String() != "192.0.2.0/24" || all[2].String() != "198.51.100.1/32" {
		t.Errorf("%v, %v", all, err)
	}
	for _, text := range []string{"", "x", "192.0.2.0/33", "fe80::1%eth0"} {
		if _, err := ParseAllowed([]string{text}); !errs.HasCode(err, "invalid_allowed_cidrs") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
