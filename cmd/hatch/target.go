package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/cmd/hatch/internal/contexts"
)

// The local socket of hatchd.
const (
	socketName  = "hatchd.sock"
	runSocket   = "/run/hatch/" + socketName // of a hatchd with the default data directory
	socketGroup = "hatch"
	unixScheme  = "unix://"
)

// target is the server that commands call.
type target struct {
	url     string
	via     string           // what has chosen it, for users
	context contexts.Context // the zero Context for none
	denied  string           // a local socket that this user may not open
}

// target returns the server: that of flags, else of the environment, else of the current
// context, else this host's own through its socket, else the default address. A key of the
// environment is for no socket, and for no context, which has its own.
func (c *connection) target() (target, error) {
	if c.chosen == nil {
		t, err := c.choose()
		if err != nil {
			return target{}, err
		}
		c.chosen = &t
	}
	return *c.chosen, nil
}

func (c *connection) choose() (target, error) {
	switch {
	case c.url != "" && c.context != "":
		return target{}, usageError{errors.New("--url and --context both name a server; give one of them")}
	case c.url != "":
		return target{url: c.url, via: "--url"}, nil
	case c.context != "":
		return c.named(c.context, "--context")
	case c.getenv("HATCH_URL") != "":
		return target{url: c.getenv("HATCH_URL"), via: "HATCH_URL"}, nil
	case c.getenv("HATCH_CONTEXT") != "":
		return c.named(c.getenv("HATCH_CONTEXT"), "HATCH_CONTEXT")
	}
	all, err := c.contexts()
	if err != nil {
		return target{}, err
	}
	if all.Current != "" {
		return c.named(all.Current, "the current context")
	}
	return c.onThisHost(), nil
}

// named returns the server of a context.
func (c *connection) named(name, via string) (target, error) {
	if name == contexts.Local {
		return c.onThisHost(), nil
	}
	all, err := c.contexts()
	if err != nil {
		return target{}, err
	}
	saved, err := all.Get(name)
	if err != nil {
		return target{}, hint(err, "hatch context ls lists them; hatch login URL adds one")
	}
	return target{url: saved.URL, via: fmt.Sprintf("context %s (%s)", name, via), context: saved}, nil
}

// contexts returns the saved contexts.
func (c *connection) contexts() (contexts.File, error) {
	dir := userDir(c.getenv, "XDG_CONFIG_HOME", ".config")
	if dir == "" {
		return contexts.File{}, nil
	}
	return contexts.Load(contexts.Path(dir))
}

// onThisHost returns the socket, if this user may connect and no key is given, else the
// default address.
func (c *connection) onThisHost() target {
	t := target{url: defaultURL, via: "the default address"}
	if c.keyFile != "" || c.getenv("HATCH_API_KEY") != "" {
		return t
	}
	for _, path := range socketPaths(c.getenv) {
		switch err := trySocket(path); {
		case err == nil:
			return target{url: unixScheme + path, via: "the local socket"}
		case errors.Is(err, os.ErrPermission):
			t.denied = path
		}
	}
	return t
}

// socketPaths returns where a hatchd of this host may have its socket.
func socketPaths(getenv func(string) string) []string {
	set, dir := getenv("HATCH_SOCKET"), cmp.Or(getenv("HATCH_DATA_DIR"), defaultDataDir)
	switch {
	case set == "off":
		return nil
	case set != "":
		return []string{set}
	case filepath.Clean(dir) == defaultDataDir:
		return []string{runSocket, filepath.Join(dir, socketName)}
	}
	return []string{filepath.Join(dir, socketName)}
}

// socketTimeout bounds an attempt to connect to a socket.
const socketTimeout = time.Second

var errForeignSocket = errors.New("it belongs to another user")

// trySocket connects to a socket of root's or of this user's: another user's program would
// get what is sent.
func trySocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
		return errForeignSocket
	}
	conn, err := (&net.Dialer{Timeout: socketTimeout}).DialContext(context.Background(), "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

// explain adds what a user can do who has no key, and may not open the socket.
func (c *connection) explain(err error) error {
	if c.chosen == nil || c.chosen.denied == "" {
		return err
	}
	return hint(err, "%s is for root and members of the group %s, who need no key: usermod -aG %s USER, and log in again; or use a key: hatch login, HATCH_API_KEY or --key-file",
		c.chosen.denied, socketGroup, socketGroup)
}

// socket returns the path of the target's unix socket, "" for a server of the network.
func (t target) socket() string {
	path, isUnix := strings.CutPrefix(t.url, unixScheme)
	if !isUnix {
		return ""
	}
	return path
}

// tlsConfig returns what the context's files say, nil for nothing.
func (t target) tlsConfig() (*tls.Config, error) {
	saved := t.context
	if saved.CAFile == "" && saved.CertFile == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if saved.CAFile != "" {
		text, err := os.ReadFile(saved.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the server's CA: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("cannot use %s as the server's CA: it has no certificate in PEM", saved.CAFile)
		}
	}
	if saved.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(saved.CertFile, saved.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot use the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// host returns the name or address of the machine that hatchd runs on.
func (t target) host() (string, error) {
	if t.socket() != "" {
		return "127.0.0.1", nil
	}
	u, err := url.Parse(t.url)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("cannot use %q as the server's address", t.url)
	}
	return u.Hostname(), nil
}
