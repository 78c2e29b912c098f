package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// RunDir is where hatchd notes that it uses the host. It is emptied by a restart of
// the host.
const RunDir = "/run/hatch"

// If hatchd is killed while it starts a program, that program holds the lock for a
// moment.
const (
	claimTimeout = time.Second
	claimRetry   = 20 * time.Millisecond
)

// maxClaim bounds what is read of another hatchd's note, in bytes: a path and a
// process id.
const maxClaim = unix.PathMax + 32

// Claim is the exclusive use of a host's network: bridge, tables of rules and TAPs have
// names that only one hatchd at a time can use.
type Claim struct {
	file *flock.Flock
	path string
}

// ClaimHost claims the network namespace of the calling thread for the hatchd with
// this data directory, until Close or the end of the process. runDir is RunDir but in
// tests.
//
// Errors: errs.Conflict with code host_in_use, which names the other hatchd.
func ClaimHost(runDir, dataDir string) (*Claim, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot claim the host's network: %w", err)
	}
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return nil, fmt.Errorf("cannot tell the network namespace: %w", err)
	}
	path := filepath.Join(runDir, fmt.Sprintf("network-%d.lock", namespace.Ino))
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	for {
		c, err := tryClaim(ctx, path)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue // another hatchd ended just now, and removed the file
		}
		note := fmt.Appendf(nil, "%d\n%s\n", os.Getpid(), dataDir)
		if err := os.WriteFile(path, note, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot claim the host's network: %w", err), c.Close())
		}
		return c, nil
	}
}

// tryClaim returns nil without an error if the file that it has locked is no longer at
// its path.
func tryClaim(ctx context.Context, path string) (*Claim, error) {
	file := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	got, err := file.TryLockContext(ctx, claimRetry)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("cannot claim the host's network: %w", err)
	}
	if !got {
		return nil, errs.New(errs.Conflict, "host_in_use", "cannot use this host's network: another hatchd%s uses it", claimant(path)).
			WithHint("stop that one first: bridge, TAPs and packet rules are one per host")
	}
	locked, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot claim the host's network: %w", err), file.Close())
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(locked, there) {
		return nil, file.Close()
	}
	return &Claim{file, path}, nil
}

// Close gives the host's network up.
func (c *Claim) Close() error {
	// While it is locked, so that no other hatchd's file is removed.
	err := os.Remove(c.path)
	return errors.Join(err, c.file.Close())
}

// claimant names the hatchd that wrote the file, "" if it has no such note.
func claimant(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	buf := make([]byte, maxClaim)
	n, _ := file.Read(buf)
	pid, rest, _ := strings.Cut(string(buf[:n]), "\n")
	dataDir, _, ended := strings.Cut(rest, "\n")
	if _, err := strconv.ParseUint(pid, 10, 31); err != nil || !ended {
		return ""
	}
	return fmt.Sprintf(" (process %s, data directory %q)", pid, dataDir)
}
