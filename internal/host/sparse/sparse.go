//go:build linux

// Package sparse copies large files of which little is filled, such as guests'
// memory and disks, and tells later whether a copy is still what it was.
//
// A copy has holes where the file has them or holds pages of zeros, or it shares
// blocks with the file. An [Index]
// keeps a checksum of each chunk. It guards against disks and mishaps, not
// against somebody who may write to the data directory. Where the files lie,
// and when they are safe from a power cut, is the caller's to say.
// Start at [Part].
package sparse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Part names what is copied in errors: "memory", "disk".
type Part string

// Unusable says that a copy cannot be used: a part of it is missing, cut short
// or damaged.
type Unusable struct {
	Text string // for the owner, about "its" parts: "its memory is damaged"
	Err  error  // for the log; nil where the text says all
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

// Create makes a new file of size bytes that is all hole, for its user alone.
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

// Sync makes what is at path safe from a power cut: a file's content, or a
// directory's names. Nothing there is no error.
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

// Allocated returns how much the files of a directory take on disk, in bytes.
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
