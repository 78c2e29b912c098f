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
	"syscall"

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

// Create writes a file with a new identity, and returns it. It never replaces a file.
func (f File) Create() (secret.Identities, error) {
	if _, err := os.Lstat(f.Path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot make the key of the secrets: %s exists (%w)", f.Path, err)
	}
	made, err := secret.NewIdentity()
	if err != nil {
		return nil, err
	}
	ids := secret.Identities{made}
	return ids, f.Store(ids)
}

// Store replaces the file, and makes it durable.
func (f File) Store(ids secret.Identities) error {
	dir := filepath.Dir(f.Path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(f.Path)+"-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("cannot write the key of the secrets: %w", err)
	}
	_, err = tmp.Write(ids.Text())
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), f.Path)
	}
	if err != nil {
		return fmt.Errorf("cannot write the key of the secrets: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return syncDir(dir)
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
