//go:build linux && amd64

package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// Names of a machine's sockets in its run directory.
const (
	qmpSocket     = "qmp.sock"
	consoleSocket = "console.sock"
	agentSocket   = "agent.sock"
)

var socketNames = []string{qmpSocket, consoleSocket, agentSocket}

// maxSocketPath is the longest path of a Unix socket, in bytes.
const maxSocketPath = 107

// listen makes a listening socket in dir that only root may connect to. Connections
// can be made before QEMU accepts them. It replaces a stale socket, but not one that
// a process serves.
func listen(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name)
	if len(path) > maxSocketPath {
		return nil, errs.New(errs.Unsupported, "path_too_long",
			"the data directory's path is too long by %d bytes for the sockets of a VM", len(path)-maxSocketPath).
			WithHint("set HATCH_DATA_DIR to a shorter path")
	}
	if conn, err := net.Dial("unix", path); err == nil { //nolint:noctx // a Unix socket accepts or refuses at once
		_ = conn.Close()
		return nil, errs.New(errs.Conflict, "machine_runs", "another process serves the socket %s of this VM", name)
	}
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot make the socket %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove an old socket: %w", err)
	}
	return nil
}

func removeSockets(dir string) error {
	var failures []error
	for _, name := range socketNames {
		failures = append(failures, removeSocket(filepath.Join(dir, name)))
	}
	return errors.Join(failures...)
}

// socketLinks maps the paths of all Unix sockets of this network namespace to the
// targets that their links below /proc/PID/fd have.
func socketLinks() (map[string]map[string]bool, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, fmt.Errorf("cannot list sockets: %w", err)
	}
	return parseSocketTable(string(table)), nil
}

// parseSocketTable reads /proc/net/unix: the seventh column is the inode, the eighth
// the path, which may contain spaces.
func parseSocketTable(table string) map[string]map[string]bool {
	links := map[string]map[string]bool{}
	for line := range strings.Lines(table) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		columns, rest := 0, ""
		for i, f := range fields {
			if f == "" {
				continue
			}
			if columns++; columns == 7 {
				rest = strings.Join(fields[i:], " ")
				break
			}
		}
		inode, path, ok := strings.Cut(rest, " ")
		if !ok || !strings.HasPrefix(path, "/") {
			continue
		}
		if links[path] == nil {
			links[path] = map[string]bool{}
		}
		links[path]["socket:["+inode+"]"] = true
	}
	return links
}
