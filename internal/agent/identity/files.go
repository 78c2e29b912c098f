package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxFile limits the files that edit changes, in bytes.
const maxFile = 1 << 20

// edit replaces the content of a regular file with the result of change. It ignores a
// missing file, and leaves what is not a regular file, such as a link, which the image
// has on purpose. It writes in place, because the file may be a bind mount.
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

// remove removes a file. A missing file is no error.
func remove(path string) error {
	if err := os.Remove(path); !absent(err) {
		return err
	}
	return nil
}

// absent reports whether err means that a file or a directory in its path is missing.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
