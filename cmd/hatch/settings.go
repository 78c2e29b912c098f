package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/hatchvm/hatch/client"
)

const (
	defaultURL     = "http://127.0.0.1:8080"
	defaultDataDir = "/var/lib/hatch"
	maxKeyFile     = 4 << 10 // bytes
	keyHint        = "give a key in HATCH_API_KEY, --key-file or ~/.config/hatch/key; on the server itself, root can read it from the data directory's admin.key"
)

// server is the URL of the API.
func (c *cli) server() string {
	return cmp.Or(c.url, c.env("HATCH_URL"), defaultURL)
}

func (c *cli) client() (*client.Client, error) {
	key, err := c.key()
	if err != nil {
		return nil, err
	}
	return client.New(c.server(), key, client.WithUserAgent("hatch/"+programVersion()))
}

// key finds the API key. None at all is no error here: the server says so if
// it wants one.
func (c *cli) key() (string, error) {
	if c.keyFile != "" {
		key, err := readKey(c.keyFile)
		if err != nil {
			return "", fmt.Errorf("cannot read the API key: %w", err)
		}
		return key, nil
	}
	if key := c.env("HATCH_API_KEY"); key != "" {
		return strings.TrimSpace(key), nil
	}
	for _, path := range c.keyFiles() {
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

// keyFiles lists where a key may lie. The key of a server on this machine is
// not for others to see, so it is offered to loopback addresses only.
func (c *cli) keyFiles() []string {
	var files []string
	if isLoopback(c.server()) {
		files = append(files, filepath.Join(cmp.Or(c.env("HATCH_DATA_DIR"), defaultDataDir), "admin.key"))
	}
	if dir := c.userDir("XDG_CONFIG_HOME", ".config"); dir != "" {
		files = append(files, filepath.Join(dir, "hatch", "key"))
	}
	return files
}

// userDir is a directory of the XDG convention, or "" when there is no home.
func (c *cli) userDir(variable, below string) string {
	if dir := c.env(variable); filepath.IsAbs(dir) {
		return dir
	}
	if home := c.env("HOME"); home != "" {
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
	key := strings.TrimSpace(string(text))
	if key == "" || len(text) > maxKeyFile {
		return "", fmt.Errorf("%s does not hold one API key", path)
	}
	return key, nil
}

// host is the name or address of the machine that hatchd runs on.
func (c *cli) host() (string, error) {
	u, err := url.Parse(c.server())
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("cannot use %q as the server's address", c.server())
	}
	return u.Hostname(), nil
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
