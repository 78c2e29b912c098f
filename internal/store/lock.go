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

// lockFile lies in the data directory. It stays when hatchd ends: only the
// lock on it means anything.
const lockFile = "hatchd.lock"

// A hatchd that was killed while it started a program leaves its lock to that
// program for a moment.
const (
	lockPatience = time.Second
	lockRetry    = 20 * time.Millisecond
)

// Lock is the sole right to a data directory.
type Lock struct{ file *flock.Flock }

// LockDir takes the data directory for this process, until Close or the
// process's end. An error names the process that has it.
func LockDir(dataDir string) (*Lock, error) {
	path := filepath.Join(dataDir, lockFile)
	file := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	got, err := file.TryLockContext(ctx, lockRetry)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("cannot lock the data directory: %w", err)
	}
	if !got {
		return nil, fmt.Errorf("cannot use the data directory %s: another hatchd%s uses it; end that one first, or give HATCH_DATA_DIR another directory",
			dataDir, holder(path))
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock the data directory: %w", err), file.Close())
	}
	return &Lock{file}, nil
}

// Close gives the data directory back.
func (l *Lock) Close() error { return l.file.Close() }

// holder says which process wrote the file, when it says so.
func holder(path string) string {
	text, err := os.ReadFile(path)
	pid := strings.TrimSpace(string(text))
	if err != nil || pid == "" || len(pid) > 10 || strings.Trim(pid, "0123456789") != "" {
		return ""
	}
	return " (process " + pid + ")"
}
