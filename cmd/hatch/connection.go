package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

const (
	defaultURL     = "http://127.0.0.1:8080"
	defaultDataDir = "/var/lib/hatch"
	maxKeyFile     = 4 << 10 // bytes
	keyHint        = "log in with hatch login URL, or give a key in HATCH_API_KEY, --key-file or ~/.config/hatch/key; on the server itself, root's hatch reads admin.key in the data directory if hatchd listens at this address, not through a proxy or tunnel"
)

// connection is how to reach the server: its address and the API key.
type connection struct {
	getenv  func(name string) string
	url     string // of --url
	context string // of --context
	keyFile string // of --key-file
	chosen  *target
}

// client returns the client of the server, with the user's key.
func (c *connection) client() (*client.Client, error) {
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	key, err := c.key(t)
	if err != nil {
		return nil, err
	}
	return newClient(t, key)
}

// keyless returns the client of the server, for what needs no key.
func (c *connection) keyless() (*client.Client, error) {
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	return newClient(t, "")
}

func newClient(t target, key string) (*client.Client, error) {
	transport, err := newHTTPClient(t)
	if err != nil {
		return nil, err
	}
	return client.New(t.url, key, client.WithUserAgent("hatch/"+programVersion()), client.WithHTTPClient(transport))
}

// Bounds on requests: none waits for ever for a server that is not there.
const (
	connectTimeout = 10 * time.Second
	readTimeout    = 2 * time.Minute  // until the response to a request that only reads
	workTimeout    = 30 * time.Minute // until that to any other; the server bounds its work
)

// newHTTPClient returns a client with these bounds, which do not cut streams.
// Redirects are not followed: the key is for this server alone.
func newHTTPClient(t target) (*http.Client, error) {
	secure, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	transport := func(timeout time.Duration) *http.Transport {
		h := http.DefaultTransport.(*http.Transport).Clone()
		h.DialContext = (&net.Dialer{Timeout: connectTimeout}).DialContext
		if socket := t.socket(); socket != "" {
			h.DialContext, h.Proxy = client.DialUnix(socket), nil
		}
		h.TLSClientConfig = secure.Clone()
		h.ResponseHeaderTimeout = timeout
		return h
	}
	return &http.Client{
		Transport:     boundedTransport{reads: transport(readTimeout), works: transport(workTimeout)},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// boundedTransport sends requests that only read, and all others.
type boundedTransport struct{ reads, works http.RoundTripper }

// RoundTrip sends a request.
func (b boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	waits := strings.HasSuffix(r.URL.Path, "/wait") || r.URL.Query().Has("follow") || r.Header.Get("Upgrade") != ""
	if r.Method == http.MethodGet && !waits {
		return b.reads.RoundTrip(r)
	}
	return b.works.RoundTrip(r)
}

// openVM returns a client, and the VM that ref means, as [findVM] does.
func (c *connection) openVM(ctx context.Context, ref string) (*client.Client, api.VM, error) {
	server, err := c.client()
	if err != nil {
		return nil, api.VM{}, err
	}
	v, err := findVM(ctx, server, ref)
	return server, v, err
}

// key returns the API key for a server, "" for none: the server refuses the call if it
// needs one, which a local socket does not.
func (c *connection) key(t target) (string, error) {
	if c.keyFile != "" {
		key, err := readKey(c.keyFile)
		if err != nil {
			return "", fmt.Errorf("cannot read the API key: %w", err)
		}
		return key, nil
	}
	if key := c.getenv("HATCH_API_KEY"); key != "" && t.context.Name == "" && t.socket() == "" {
		return strings.TrimSpace(key), nil
	}
	if t.context.Name != "" || t.socket() != "" {
		return t.context.Key, nil
	}
	var files []string
	if dir := cmp.Or(c.getenv("HATCH_DATA_DIR"), defaultDataDir); servesDataDir(t.url, dir) {
		files = append(files, filepath.Join(dir, "admin.key"))
	}
	if dir := userDir(c.getenv, "XDG_CONFIG_HOME", ".config"); dir != "" {
		files = append(files, filepath.Join(dir, "hatch", "key"))
	}
	for _, path := range files {
		key, err := readKey(path)
		if err == nil {
			return key, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return "", fmt.Errorf("cannot read the API key: %w", err)
		}
	}
	return "", nil
}

// userDir returns a directory of the XDG convention, "" if HOME is not set.
func userDir(getenv func(string) string, variable, below string) string {
	if dir := getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, below)
	}
	return ""
}

func readKey(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return "", err
	}
	return oneKey(path, text)
}

// oneKey returns the API key that a text is.
func oneKey(where string, text []byte) (string, error) {
	key := strings.TrimSpace(string(text))
	if key == "" || len(text) > maxKeyFile {
		return "", fmt.Errorf("%s does not hold one API key", where)
	}
	return key, nil
}

// host returns the name or address of the machine that hatchd runs on.
func (c *connection) host() (string, error) {
	t, err := c.target()
	if err != nil {
		return "", err
	}
	return t.host()
}

func isLoopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.Unmap().IsLoopback()
}
