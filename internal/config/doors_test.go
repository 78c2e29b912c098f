package config

import (
	"strings"
	"testing"
)

func TestSettingsOfTheDoors(t *testing.T) {
	for name, c := range map[string]struct {
		environ string
		good    bool
	}{
		"TLS":                         {"HATCH_HTTP_TLS_CERT=/c HATCH_HTTP_TLS_KEY=/k HATCH_HTTP_TLS_CLIENT_CA=/ca", true},
		"a certificate without a key": {"HATCH_HTTP_TLS_CERT=/c", false},
		"client certificates alone":   {"HATCH_HTTP_TLS_CLIENT_CA=/ca", false},
		"a socket":                    {"HATCH_SOCKET=/run/x.sock", true},
		"no socket":                   {"HATCH_SOCKET=off", true},
		"a relative socket":           {"HATCH_SOCKET=x.sock", false},
		"a long socket":               {"HATCH_SOCKET=/" + strings.Repeat("x", maxSocketPath), false},
		"an issuer":                   {"HATCH_OIDC_ISSUER=https://id.example.org HATCH_OIDC_AUDIENCE=hatch", true},
		"one of this host":            {"HATCH_OIDC_ISSUER=http://127.0.0.1:5556 HATCH_OIDC_AUDIENCE=hatch", true},
		"one without TLS":             {"HATCH_OIDC_ISSUER=http://id.example.org HATCH_OIDC_AUDIENCE=hatch", false},
		"one for any audience":        {"HATCH_OIDC_ISSUER=https://id.example.org", false},
		"an audience alone":           {"HATCH_OIDC_AUDIENCE=hatch", false},
		"roles":                       {"HATCH_OIDC_ROLE_CLAIM=groups HATCH_OIDC_ADMIN_VALUES=admins,ops", true},
		"a role without values":       {"HATCH_OIDC_ROLE_CLAIM=groups", false},
		"an empty value":              {"HATCH_OIDC_ROLE_CLAIM=groups HATCH_OIDC_ADMIN_VALUES=admins,,", false},
	} {
		if _, err := Load(Sources{Environ: strings.Fields(c.environ), Executable: "/x/hatchd"}); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhereTheSocketIs(t *testing.T) {
	for environ, want := range map[string]string{
		"": RunSocket + " /var/lib/hatch/hatchd.sock", "HATCH_DATA_DIR=/x": "/x/hatchd.sock", "HATCH_SOCKET=/y": "/y", "HATCH_SOCKET=off": "",
	} {
		c, err := Load(Sources{Environ: []string{environ}, Executable: "/x/hatchd"})
		if got := strings.Join(c.SocketPaths(), " "); err != nil || got != want {
			t.Errorf("%s: %q, %v", environ, got, err)
		}
	}
}

func TestPlainHTTPForOtherHosts(t *testing.T) {
	for environ, want := range map[string]bool{
		"": false, "HATCH_HTTP_ADDR=localhost:1": false, "HATCH_HTTP_ADDR=[::1]:1": false, "HATCH_HTTP_ADDR=:1": true, "HATCH_HTTP_ADDR=10.0.0.1:1": true,
		"HATCH_HTTP_ADDR=:1 HATCH_HTTP_TLS_CERT=/c HATCH_HTTP_TLS_KEY=/k": false,
	} {
		c, err := Load(Sources{Environ: strings.Fields(environ), Executable: "/x/hatchd"})
		if got := c.ExposesPlainHTTP(); err != nil || got != want {
			t.Errorf("%s: %v, %v", environ, got, err)
		}
	}
}
