package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// lockFile is in the data directory. It stays when hatchd ends; only the lock on it
// counts.
const lockFile = "hatchd.lock"

// If hatchd is killed while it starts a program, that program holds the lock for a
// moment.
const (
	lockTimeout = time.Second
	lockRetry   = 20 * time.Millisecond
)

// Lock is the exclusive lock on a data directory.
type Lock struct{ file *flock.Flock }

// LockDir locks the data directory until Close or the end of the process. The error
// names the process that holds the lock.
func LockDir(dataDir string) (*Lock, error) {
	path := filepath.Join(dataDir, lockFile)
	file := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	got, err := file.TryLockContext(ctx, lockRetry)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("cannot lock the data directory: %w", err)
	}
	if !got {
		return nil, fmt.Errorf("cannot use the data directory %s: another hatchd%s uses it; stop that one first, or set HATCH_DATA_DIR to another directory",
			dataDir, holder(path))
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock the data directory: %w", err), file.Close())
	}
	return &Lock{file}, nil
}

// Close releases the lock.
func (l *Lock) Close() error { return l.file.Close() }

// holder names the process that wrote the file, "" if the file has no process id.
func holder(path string) string {
	text, err := os.ReadFile(path)
	pid := strings.TrimSpace(string(text))
	if err != nil || pid == "" || len(pid) > 10 || strings.Trim(pid, "0123456789") != "" {
		return ""
	}
	return " (process " + pid + ")"
}
