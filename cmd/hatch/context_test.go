package main

import (
	"encoding/pem"
	"log/slog"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/cmd/hatch/internal/contexts"
)

// hatchOK runs a command line that must succeed, and returns what it prints.
func (s *session) hatchOK(t *testing.T, args ...string) string {
	t.Helper()
	if code := s.hatch(args...); code != 0 {
		t.Fatalf("hatch %s: exit code %d: %s", strings.Join(args, " "), code, &s.stderr)
	}
	return s.stdout.String()
}

// withoutServer is a session that has no server yet.
func withoutServer(t *testing.T) *session {
	s := newSession(t, newFake(t))
	delete(s.env, "HATCH_URL")
	delete(s.env, "HATCH_API_KEY")
	return s
}

func TestLoginSavesAServer(t *testing.T) {
	f := newFake(t)
	s := withoutServer(t)
	s.tty, s.secret = true, testKey+"\n"
	s.hatchOK(t, "login", "--name", "prod", f.URL+"/")
	if strings.Contains(s.stderr.String()+s.stdout.String(), testKey) {
		t.Error("the key is printed")
	}
	s.tty = false
	if out := s.hatchOK(t, "ls", "-q"); out == "" {
		t.Error("the server is not used")
	}
	if out := s.hatchOK(t, "context", "ls", "-o", "json") + s.hatchOK(t, "context", "show") + s.hatchOK(t, "info"); !strings.Contains(out, "prod") || !strings.Contains(out, "the current context") || strings.Contains(out, testKey) {
		t.Errorf("printed %s", out)
	}
	path := contexts.Path(filepath.Join(s.env["HOME"], ".config"))
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	s.hatchOK(t, "logout")
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), testKey) {
		t.Errorf("after logout: %s, %v", text, err)
	}
}

func TestLoginsThatSaveNothing(t *testing.T) {
	f := newFake(t)
	for name, c := range map[string]struct {
		args, stdin string
		code        int
	}{
		"a wrong key":       {"login --name x " + f.URL, "hk_wrong", exitAuth},
		"no key":            {"login --name x " + f.URL, "", exitOwn},
		"no URL":            {"login example.org", testKey, exitUsage},
		"a socket":          {"login unix:///run/hatch/hatchd.sock", testKey, exitUsage},
		"a name":            {"login --name local " + f.URL, testKey, exitUsage},
		"half a pair":       {"login --name x --cert c.pem " + f.URL, testKey, exitUsage},
		"a missing CA":      {"login --name x --ca /nonexistent " + f.URL, testKey, exitOwn},
		"no server":         {"login --name x http://127.0.0.1:1", testKey, exitUnreachable},
		"an unknown flag":   {"login --insecure " + f.URL, testKey, exitUsage},
		"an unknown logout": {"logout none", "", exitNotFound},
		"logout of nothing": {"logout", "", exitOwn},
	} {
		t.Run(name, func(t *testing.T) {
			s := withoutServer(t)
			s.stdin = strings.NewReader(c.stdin)
			if code := s.hatch(strings.Fields(c.args)...); code != c.code || strings.Contains(s.stderr.String(), testKey) {
				t.Errorf("exit code %d: %s", code, &s.stderr)
			}
			if _, err := os.Stat(contexts.Path(filepath.Join(s.env["HOME"], ".config"))); err == nil {
				t.Error("a context is saved")
			}
		})
	}
}

func TestAContextOfAnotherServerIsKept(t *testing.T) {
	f := newFake(t)
	s := withoutServer(t)
	for _, c := range []struct {
		args string
		code int
	}{{"login --name x " + f.URL, 0}, {"login --name x " + f.URL, 0}, {"login --name x https://other.example", exitOwn}} {
		s.stdin = strings.NewReader(testKey)
		if code := s.hatch(strings.Fields(c.args)...); code != c.code {
			t.Errorf("%s: exit code %d: %s", c.args, code, &s.stderr)
		}
	}
}

func TestWhichServerIsCalled(t *testing.T) {
	home, data := t.TempDir(), t.TempDir()
	all := contexts.File{}
	all.Put(contexts.Context{Name: "other", URL: "https://other", Key: "k-other"})
	all.Put(contexts.Context{Name: "current", URL: "https://current", Key: "k-current"})
	if err := all.Save(contexts.Path(filepath.Join(home, ".config"))); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(data, socketName)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	none := t.TempDir()
	for name, c := range map[string]struct {
		flag, context, home string
		env                 map[string]string
		url, key            string
		fails               bool
	}{
		"--url":                        {flag: "http://flag", home: home, env: map[string]string{"HATCH_URL": "http://env", "HATCH_API_KEY": "k"}, url: "http://flag", key: "k"},
		"--url gets no context's key":  {flag: "http://flag", home: home, url: "http://flag"},
		"--context":                    {context: "other", home: home, env: map[string]string{"HATCH_URL": "http://env", "HATCH_API_KEY": "k"}, url: "https://other", key: "k-other"},
		"both flags":                   {flag: "http://flag", context: "other", home: home, fails: true},
		"an unknown context":           {context: "none", home: home, fails: true},
		"HATCH_URL":                    {home: home, env: map[string]string{"HATCH_URL": "http://env", "HATCH_CONTEXT": "other"}, url: "http://env"},
		"HATCH_CONTEXT":                {home: home, env: map[string]string{"HATCH_CONTEXT": "other"}, url: "https://other", key: "k-other"},
		"HATCH_CONTEXT, HATCH_API_KEY": {home: home, env: map[string]string{"HATCH_CONTEXT": "other", "HATCH_API_KEY": "k"}, url: "https://other", key: "k-other"},
		"the current one":              {home: home, env: map[string]string{"HATCH_DATA_DIR": data}, url: "https://current", key: "k-current"},
		"local":                        {context: "local", home: home, env: map[string]string{"HATCH_DATA_DIR": data}, url: "unix://" + socket},
		"the socket":                   {home: none, env: map[string]string{"HATCH_DATA_DIR": data}, url: "unix://" + socket},
		"HATCH_SOCKET":                 {home: none, env: map[string]string{"HATCH_SOCKET": socket}, url: "unix://" + socket},
		"no socket":                    {home: none, env: map[string]string{"HATCH_SOCKET": "off", "HATCH_DATA_DIR": data}, url: defaultURL},
		"a key is for no socket":       {home: none, env: map[string]string{"HATCH_DATA_DIR": data, "HATCH_API_KEY": "k"}, url: defaultURL, key: "k"},
		"a socket by its URL":          {flag: "unix://" + socket, home: none, url: "unix://" + socket},
		"a key, and its URL":           {flag: "unix://" + socket, home: none, env: map[string]string{"HATCH_API_KEY": "k"}, url: "unix://" + socket},
		"the current one, and a key":   {home: home, env: map[string]string{"HATCH_DATA_DIR": data, "HATCH_API_KEY": "k"}, url: "https://current", key: "k-current"},
		"the default":                  {home: none, env: map[string]string{"HATCH_DATA_DIR": none}, url: defaultURL},
	} {
		t.Run(name, func(t *testing.T) {
			c.env = merge(c.env, map[string]string{"HOME": c.home})
			connection := &connection{url: c.flag, context: c.context, getenv: func(n string) string { return c.env[n] }}
			got, err := connection.target()
			if (err != nil) != c.fails || got.url != c.url {
				t.Fatalf("got %+v, %v", got, err)
			}
			if key, err := connection.key(got); err != nil || key != c.key {
				t.Errorf("the key is %q, %v", key, err)
			}
			if host, err := got.host(); c.url == "unix://"+socket && (err != nil || host != "127.0.0.1") {
				t.Errorf("the host is %q, %v", host, err)
			}
		})
	}
}

func merge(a, b map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		maps.Copy(all, m)
	}
	return all
}

func TestASocketThatMayNotBeOpened(t *testing.T) {
	c := &connection{chosen: &target{url: defaultURL, denied: runSocket}}
	if p := problemOf(c.explain(errForeignSocket)); !strings.Contains(p.Hint, "usermod -aG hatch") {
		t.Errorf("the hint is %q", p.Hint)
	}
	c.chosen.denied = ""
	if err := c.explain(errForeignSocket); err != errForeignSocket { //nolint:errorlint // it is the same one
		t.Errorf("got %v", err)
	}
}

func TestLoginOverTLS(t *testing.T) {
	f := newFake(t)
	secure := httptest.NewUnstartedServer(f.Config.Handler)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	s := withoutServer(t)
	s.stdin = strings.NewReader(testKey)
	if code := s.hatch("login", "--name", "x", secure.URL); code != exitUnreachable {
		t.Errorf("a server that is not trusted: exit code %d: %s", code, &s.stderr)
	}
	s.stdin = strings.NewReader(testKey)
	s.hatchOK(t, "login", "--name", "x", "--ca", ca, secure.URL)
	s.hatchOK(t, "ls")
	s.hatchOK(t, "api", "GET", "/vms")
}
