// Package files reads and writes the guest's files for the host: files of any size,
// directories, and trees as tar archives. It also follows and watches files.
//
// It needs constant memory for any size. It runs as root, with all permissions that the
// guest's kernel gives root, and does not authorize requests. internal/guest/wire has
// the protocol. Start at [Files].
package files

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Files implements [wire.FileHandler]. Its methods may be called from several
// goroutines at once.
type Files struct {
	root     string // directory with etc/passwd and etc/group
	partials partials

	changing sync.Mutex // held from a check of a condition until the file is replaced or removed
}

// New returns the files of the guest whose root directory is root.
func New(root string) *Files { return &Files{root: root} }

var _ wire.FileHandler = (*Files)(nil)

// validPath returns a path as a string, or refuses it.
func validPath(path []byte) (string, error) {
	if len(path) == 0 || path[0] != '/' || len(path) >= unix.PathMax || bytes.IndexByte(path, 0) >= 0 {
		return "", wire.Refuse(wire.CodeInvalidPath, "a path must begin with a slash, be shorter than %d bytes and have no zero byte", unix.PathMax)
	}
	return string(path), nil
}

// StatFile implements wire.FileHandler.
func (f *Files) StatFile(_ context.Context, args wire.PathArgs) (wire.FileInfo, error) {
	path, err := validPath(args.Path)
	if err != nil {
		return wire.FileInfo{}, err
	}
	return f.stat(path)
}

// stat describes a file. It does not follow a link.
func (f *Files) stat(path string) (wire.FileInfo, error) {
	info, err := f.describer().at(unix.AT_FDCWD, path)
	if err != nil {
		return info, wireError(err)
	}
	info.Path = []byte(path)
	return info, nil
}

// MakeDirectory implements wire.FileHandler.
func (f *Files) MakeDirectory(_ context.Context, args wire.MakeDirectoryArgs) (wire.FileInfo, error) {
	path, err := validPath(args.Path)
	if err != nil {
		return wire.FileInfo{}, err
	}
	owner, err := f.owner(args.Owner)
	if err != nil {
		return wire.FileInfo{}, err
	}
	if args.Parents {
		err = makeDirectories(path, args.Mode&permissions, owner)
	} else {
		err = makeDirectory(path, args.Mode&permissions, owner)
	}
	if err != nil {
		return wire.FileInfo{}, wireError(err)
	}
	return f.stat(path)
}

// parentMode is the mode of new parent directories.
const parentMode = 0o755

// makeDirectories creates a directory and its missing parents.
func makeDirectories(path string, mode uint32, owner ids) error {
	if st, err := os.Stat(path); err == nil {
		if st.IsDir() {
			return nil
		}
		return unix.ENOTDIR
	}
	above, name := split(path)
	if name == "" || name == "." || name == ".." {
		return makeDirectories(above, mode, owner)
	}
	if err := makeDirectories(above, parentMode, owner); err != nil {
		return err
	}
	err := makeDirectory(path, mode, owner)
	if st, statErr := os.Stat(path); errors.Is(err, unix.EEXIST) && statErr == nil && st.IsDir() {
		return nil // another process created it meanwhile
	}
	return err
}

// makeDirectory creates a directory. Only root can enter it until it has its owner and
// mode.
func makeDirectory(path string, mode uint32, owner ids) error {
	if err := unix.Mkdir(path, 0o700); err != nil {
		return err
	}
	dir, err := openDirectory(unix.AT_FDCWD, strings.TrimRight(path, "/"), unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return setOwnerAndMode(dir, mode, owner)
}

// setOwnerAndMode sets the owner before the mode, because a change of the owner may
// clear bits of the mode.
func setOwnerAndMode(file *os.File, mode uint32, owner ids) error {
	fd := int(file.Fd())
	if err := unix.Fchown(fd, int(owner.user), int(owner.group)); err != nil {
		return err
	}
	return unix.Fchmod(fd, mode)
}

// split splits a path at its last slash. above does not end with a slash, unless it is
// the root.
func split(path string) (above, name string) {
	at := len(path) - 1
	for path[at] != '/' {
		at--
	}
	name = path[at+1:]
	for at > 0 && path[at-1] == '/' {
		at--
	}
	return path[:max(1, at)], name
}

// RenameFile implements wire.FileHandler.
func (f *Files) RenameFile(_ context.Context, args wire.RenameFileArgs) (wire.FileInfo, error) {
	from, err := validPath(args.From)
	if err != nil {
		return wire.FileInfo{}, err
	}
	to, err := validPath(args.To)
	if err != nil {
		return wire.FileInfo{}, err
	}
	if err := unix.Rename(from, to); err != nil {
		return wire.FileInfo{}, wireError(err)
	}
	return f.stat(to)
}

// RemoveFile implements wire.FileHandler. The removal of a tree continues when hatchd
// disconnects.
func (f *Files) RemoveFile(_ context.Context, args wire.RemoveFileArgs) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err != nil {
		return wireError(err)
	}
	if _, name := split(path); args.Recursive && (name == "." || name == ".." || path == "/") {
		return wire.Refuse(wire.CodeInvalidPath, "cannot remove a tree by a path that ends in . or .., nor the root directory")
	}
	if err := f.removeIf(args.If, path, args.Recursive); err != nil {
		return wireError(err)
	}
	if args.Recursive {
		return wireError(os.RemoveAll(path)) // follows no links
	}
	return nil
}

// removeIf checks the condition and removes a file. A tree is left to the caller, because
// its removal may take long, and no write may wait for it.
func (f *Files) removeIf(c *wire.FileCondition, path string, tree bool) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	if err := checkPath(c, path); err != nil || tree {
		return err
	}
	return os.Remove(path)
}
