//go:build linux

// Package sparse copies large files that are mostly holes, such as guests' memory
// and disks, and verifies copies later.
//
// A copy has holes where the file has holes or pages of zeros, or it shares blocks
// with the file. An [Index] contains a checksum of each chunk. It protects against
// disk errors and accidents, not against a process that may write to the data
// directory. The caller says where the files are and when they are synced.
// Start at [Part].
package sparse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Part is what errors call a file: "memory", "disk".
type Part string

// Unusable is the error for a copy that is missing, truncated or damaged.
type Unusable struct {
	Text string // for the owner, about "its" parts: "its memory is damaged"
	Err  error  // for the log; may be nil
}

// Error returns the text and its cause.
func (u *Unusable) Error() string {
	if u.Err == nil {
		return u.Text
	}
	return u.Text + ": " + u.Err.Error()
}

// Unwrap returns the cause.
func (u *Unusable) Unwrap() error { return u.Err }

func unusable(cause error, format string, args ...any) *Unusable {
	return &Unusable{Text: fmt.Sprintf(format, args...), Err: cause}
}

// Create makes a new file of size bytes, one hole, with mode 0600.
func Create(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// Sync makes a file's content, or a directory's names, durable. A missing path is
// no error.
func Sync(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Allocated returns the disk space of the files of a directory, in bytes.
func Allocated(dir string) (bytes int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			return 0, err
		}
		bytes += st.Blocks * 512
	}
	return bytes, nil
}
