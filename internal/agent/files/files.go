// Package files is the agent's work on the guest's files: it reads and writes
// single ones of any size, lists directories, packs and unpacks trees as tar,
// follows texts that grow, and watches for changes.
//
// It works in constant memory, whatever the sizes, and as root: what the
// guest's kernel allows root is allowed. It decides nothing about who may ask.
// Start at [Files], which implements wire.FileHandler.
package files

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Files does what hatchd asks for. Its methods may be called from several
// goroutines at once.
type Files struct {
	root     string // whose /etc knows the names of users and groups
	partials partials
}

// New returns the files of the guest whose root directory is root.
func New(root string) *Files { return &Files{root: root} }

var _ wire.FileHandler = (*Files)(nil)

// checked returns a path as a string, if it can be one.
func checked(path []byte) (string, error) {
	if len(path) == 0 || path[0] != '/' || len(path) >= unix.PathMax || bytes.IndexByte(path, 0) >= 0 {
		return "", wire.Refuse(wire.CodeInvalidPath, "a path begins with a slash and has less than %d bytes, none of them zero", unix.PathMax)
	}
	return string(path), nil
}

// StatFile implements wire.FileHandler.
func (f *Files) StatFile(_ context.Context, args wire.PathArgs) (wire.FileInfo, error) {
	path, err := checked(args.Path)
	if err != nil {
		return wire.FileInfo{}, err
	}
	return f.stat(path)
}

// stat describes the file itself, be it a link.
func (f *Files) stat(path string) (wire.FileInfo, error) {
	info, err := f.describer().at(unix.AT_FDCWD, path)
	if err != nil {
		return info, refusal(err)
	}
	info.Path = []byte(path)
	return info, nil
}

// MakeDirectory implements wire.FileHandler.
func (f *Files) MakeDirectory(_ context.Context, args wire.MakeDirectoryArgs) (wire.FileInfo, error) {
	path, err := checked(args.Path)
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
		return wire.FileInfo{}, refusal(err)
	}
	return f.stat(path)
}

// parentMode is that of directories made on the way to what was asked for.
const parentMode = 0o755

// makeDirectories makes a directory and what is missing above it.
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
		return nil // another was faster
	}
	return err
}

// makeDirectory makes one. It is nobody's to enter before it has its owner,
// who need not be trusted with what happens meanwhile.
func makeDirectory(path string, mode uint32, owner ids) error {
	if err := unix.Mkdir(path, 0o700); err != nil {
		return err
	}
	dir, err := openDirectory(unix.AT_FDCWD, strings.TrimRight(path, "/"), unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return settle(dir, mode, owner)
}

// settle gives an open file its owner and then its mode, which a change of
// owner may reduce.
func settle(file *os.File, mode uint32, owner ids) error {
	fd := int(file.Fd())
	if err := unix.Fchown(fd, int(owner.user), int(owner.group)); err != nil {
		return err
	}
	return unix.Fchmod(fd, mode)
}

// split parts a path behind its last slash; above never ends with one, unless
// it is the root.
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
	from, err := checked(args.From)
	if err != nil {
		return wire.FileInfo{}, err
	}
	to, err := checked(args.To)
	if err != nil {
		return wire.FileInfo{}, err
	}
	if err := unix.Rename(from, to); err != nil {
		return wire.FileInfo{}, refusal(err)
	}
	return f.stat(to)
}

// RemoveFile implements wire.FileHandler. A tree is removed to its end, also
// when the host leaves meanwhile.
func (f *Files) RemoveFile(_ context.Context, args wire.RemoveFileArgs) error {
	path, err := checked(args.Path)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err != nil {
		return refusal(err)
	}
	if !args.Recursive {
		return refusal(os.Remove(path))
	}
	if _, name := split(path); name == "." || name == ".." || path == "/" {
		return wire.Refuse(wire.CodeInvalidPath, "a tree is removed by its name")
	}
	return refusal(os.RemoveAll(path)) // follows no links
}
