//go:build linux

// Package keyfile reads and writes the file with the identities that open hatchd's
// secrets, and refuses one that other users could have read or made.
//
// It knows nothing of what is encrypted: internal/secret does. A file is replaced as a
// whole or not at all, because half a key opens nothing. Start at [File].
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/secret"
)

// Name is the file's name in the data directory.
const Name = "secrets.key"

// File is a key file, which may be missing.
type File struct {
	Path string // absolute
}

// Load returns the identities in the file. Errors: fs.ErrNotExist.
func (f File) Load() (secret.Identities, error) {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0) // a FIFO must not block
	if err != nil {
		return nil, fmt.Errorf("cannot read the key of the secrets: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := check(file); err != nil {
		return nil, fmt.Errorf("cannot use the key of the secrets: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(file, secret.MaxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the key of the secrets: %w", err)
	}
	ids, err := secret.ParseIdentities(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use the key of the secrets, %s: %w", f.Path, err)
	}
	return ids, nil
}

// check refuses an open file that another user than root and hatchd's own owns, reads
// or writes.
func check(file *os.File) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", file.Name())
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("other users may read %s (its mode is %04o): run chmod 600 on it, and hatchd rotate-secrets if one of them is not trusted", file.Name(), st.Mode().Perm())
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d; it must belong to root, or to user %d", file.Name(), sys.Uid, os.Geteuid())
	}
	return nil
}

// Create writes a file with a new identity, and returns it. Errors: those of Add.
func (f File) Create() (secret.Identities, error) {
	made, err := secret.NewIdentity()
	if err != nil {
		return nil, err
	}
	ids := secret.Identities{made}
	return ids, f.Add(ids)
}

// Add writes a file that does not exist, and makes it durable. Errors: fs.ErrExist.
func (f File) Add(ids secret.Identities) error {
	return f.write(f.Path, ids, func(tmp string) error { // a rename could replace another process's key
		return errors.Join(os.Link(tmp, f.Path), os.Remove(tmp))
	})
}

// Store replaces the file, and makes it durable. It follows symbolic links: the file
// stays where it is.
func (f File) Store(ids secret.Identities) error {
	path, err := filepath.EvalSymlinks(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return f.Add(ids)
	}
	if err != nil {
		return fmt.Errorf("cannot write the key of the secrets: %w", err)
	}
	return f.write(path, ids, func(tmp string) error { return os.Rename(tmp, path) })
}

// write writes a temporary file beside path, which publish puts in its place.
func (f File) write(path string, ids secret.Identities, publish func(tmp string) error) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, tempPattern(path)) // with mode 0600
	if err != nil {
		return fmt.Errorf("cannot write the key of the secrets: %w", err)
	}
	_, err = tmp.Write(ids.Text())
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = publish(tmp.Name())
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // it may be gone
		return fmt.Errorf("cannot write the key of the secrets: %w", err)
	}
	return syncDir(dir)
}

func tempPattern(path string) string { return "." + filepath.Base(path) + ".*.tmp" }

// Clean removes temporary files that a crash has left, which have keys.
// Precondition: no other process writes the file.
func (f File) Clean() error {
	path, err := filepath.EvalSymlinks(f.Path)
	if err != nil {
		path = f.Path
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	before, after, _ := strings.Cut(tempPattern(path), "*")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), before) && strings.HasSuffix(e.Name(), after) {
			err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(path), e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove an unfinished key file: %w", err)
	}
	return nil
}

// Volatile reports whether a restart of the host loses the file, or one that is made
// there: it is in memory.
func (f File) Volatile() (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(f.Path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		err = unix.Statfs(filepath.Dir(f.Path), &st)
	}
	if err != nil {
		return false, fmt.Errorf("cannot find the file system of %s: %w", f.Path, err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot make the key of the secrets durable: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("cannot make the key of the secrets durable: %w", err)
	}
	return nil
}
