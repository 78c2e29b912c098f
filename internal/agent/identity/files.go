package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxFile bounds the files that are changed, in bytes.
const maxFile = 1 << 20

// edit replaces the content of a plain file by what change makes of it. No file,
// and what is none, such as a link, is the image's own arrangement: it stays. A
// file is written in place, for it may be a mount of its own.
func edit(path string, change func([]byte) []byte) error {
	st, err := os.Lstat(path)
	if absent(err) || err == nil && (!st.Mode().IsRegular() || st.Size() > maxFile) {
		return nil
	}
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := change(bytes.Clone(old))
	if bytes.Equal(text, old) {
		return nil
	}
	if err := os.WriteFile(path, text, st.Mode().Perm()); err != nil {
		return fmt.Errorf("cannot change %s: %w", path, err)
	}
	return nil
}

// remove deletes a file. None there is no error.
func remove(path string) error {
	if err := os.Remove(path); !absent(err) {
		return err
	}
	return nil
}

// absent reports whether there is no such file, because it or a directory on
// the way to it is missing.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
