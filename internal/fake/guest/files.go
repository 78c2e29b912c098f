package guest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
)

var _ file.Guest = (*Files)(nil)

// Files is a directory that serves as the file system of a guest.
type Files struct {
	root *os.Root
}

// OpenFiles returns the files of a guest whose root directory is dir.
func OpenFiles(dir string) (*Files, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Files{root: root}, nil
}

// Close closes the directory.
func (g *Files) Close() error { return g.root.Close() }

// local returns a guest's path relative to the root.
func local(p string) string {
	if p = strings.TrimPrefix(path.Clean(p), "/"); p == "" {
		return "."
	}
	return p
}

// ReadFile implements file.Guest.
func (g *Files) ReadFile(_ context.Context, spec file.ReadSpec) (file.Info, io.ReadCloser, error) {
	f, err := g.root.Open(local(spec.Path))
	if err != nil {
		return file.Info{}, nil, agentError(spec.Path, err)
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = syscall.EISDIR
	}
	if err != nil {
		return file.Info{}, nil, errors.Join(agentError(spec.Path, err), f.Close())
	}
	from, length := span(spec, st.Size())
	return g.info(spec.Path, st), section{io.NewSectionReader(f, from, length), f}, nil
}

// span returns the range that spec selects in a file of this size, in bytes.
func span(spec file.ReadSpec, size int64) (from, length int64) {
	if from = spec.Offset; from < 0 {
		from = max(0, size+from)
	}
	length = max(0, size-from)
	if spec.Length >= 0 {
		length = min(length, spec.Length)
	}
	return from, length
}

// section is a part of a file, which it closes.
type section struct {
	io.Reader
	io.Closer
}

// WriteFile implements file.Guest.
func (g *Files) WriteFile(_ context.Context, spec file.WriteSpec, content io.Reader) (file.Info, error) {
	name := local(spec.Path)
	if spec.Parents {
		if err := g.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return file.Info{}, agentError(spec.Path, err)
		}
	}
	name, err := g.target(name)
	if err != nil {
		return file.Info{}, agentError(spec.Path, err)
	}
	mode := fs.FileMode(0o644)
	if old, err := g.root.Stat(name); err == nil {
		if old.IsDir() {
			return file.Info{}, agentError(spec.Path, syscall.EISDIR)
		}
		mode = old.Mode()
	}
	if spec.Mode != nil {
		mode = modeOf(*spec.Mode)
	}
	if err := g.check(spec.If, spec.Path, name); err != nil {
		return file.Info{}, err
	}
	if err := g.replace(name, mode, content); err != nil {
		return file.Info{}, agentError(spec.Path, err)
	}
	return g.stat(spec.Path)
}

// maxLinks is how many links in a row Linux follows.
const maxLinks = 40

// target follows links at name to the file that they lead to.
func (g *Files) target(name string) (string, error) {
	for range maxLinks {
		to, err := g.root.Readlink(name)
		switch {
		case err != nil: // no link
			return name, nil
		case path.IsAbs(to):
			return "", fs.ErrNotExist
		}
		name = path.Join(path.Dir(name), to)
	}
	return "", syscall.ELOOP
}

// replace writes content to a temporary file and renames it.
func (g *Files) replace(name string, mode fs.FileMode, content io.Reader) error {
	beside := name + ".new"
	f, err := g.root.OpenFile(beside, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = g.root.Rename(beside, name)
	}
	if err != nil {
		return errors.Join(err, g.root.Remove(beside))
	}
	return nil
}

// StatFile implements file.Guest.
func (g *Files) StatFile(_ context.Context, p string) (file.Info, error) { return g.stat(p) }

func (g *Files) stat(p string) (file.Info, error) {
	st, err := g.root.Lstat(local(p))
	if err != nil {
		return file.Info{}, agentError(p, err)
	}
	return g.info(p, st), nil
}

// ListFiles implements file.Guest.
func (g *Files) ListFiles(_ context.Context, p string, each func(file.Info) error) error {
	entries, err := g.entries(local(p))
	if err != nil {
		return agentError(p, err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue // removed since
		}
		if err := each(g.info(path.Join(p, e.Name()), st)); err != nil {
			return err
		}
	}
	return nil
}

// entries reads a directory, sorted by name. io/fs would refuse names that are
// not UTF-8.
func (g *Files) entries(name string) ([]fs.DirEntry, error) {
	dir, err := g.root.Open(name)
	if err != nil {
		return nil, err
	}
	entries, err := dir.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, errors.Join(err, dir.Close())
}

// walk visits the file or tree at name, directories before their entries.
// deeper reports whether to enter a directory.
func (g *Files) walk(name string, visit func(name string, st fs.FileInfo) error, deeper func(name string) bool) error {
	st, err := g.root.Lstat(name)
	if err != nil {
		return ignoreMissing(err) // removed since
	}
	if err := visit(name, st); err != nil || !st.IsDir() || !deeper(name) {
		return err
	}
	entries, err := g.entries(name)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if err := g.walk(path.Join(name, e.Name()), visit, deeper); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// MakeDirectory implements file.Guest.
func (g *Files) MakeDirectory(_ context.Context, p string, mode uint32, _ file.Owner, parents bool) (file.Info, error) {
	name := local(p)
	if parents {
		if err := g.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return file.Info{}, agentError(p, err)
		}
	}
	err := g.root.Mkdir(name, 0o755)
	if err == nil {
		err = g.root.Chmod(name, modeOf(mode))
	}
	if st, statErr := g.root.Stat(name); errors.Is(err, fs.ErrExist) && parents && statErr == nil && st.IsDir() {
		err = nil
	}
	if err != nil {
		return file.Info{}, agentError(p, err)
	}
	return g.stat(p)
}

// RenameFile implements file.Guest.
func (g *Files) RenameFile(_ context.Context, from, to string) (file.Info, error) {
	if err := g.root.Rename(local(from), local(to)); err != nil {
		return file.Info{}, agentError(from, err)
	}
	return g.stat(to)
}

// RemoveFile implements file.Guest.
func (g *Files) RemoveFile(_ context.Context, spec file.RemoveSpec) error {
	name := local(spec.Path)
	_, err := g.root.Lstat(name)
	if err == nil {
		if err := g.check(spec.If, spec.Path, name); err != nil {
			return err
		}
	}
	if err == nil && spec.Recursive {
		err = g.root.RemoveAll(name)
	} else if err == nil {
		err = g.root.Remove(name)
	}
	if err != nil {
		return agentError(spec.Path, err)
	}
	return nil
}

// check checks a condition on the file that name leads to.
func (g *Files) check(c *file.Condition, p, name string) error {
	st, err := g.root.Stat(name)
	if err != nil {
		return c.Check(p, nil)
	}
	return c.Check(p, new(g.info(p, st)))
}

// info describes a file as the guest would.
func (g *Files) info(p string, st fs.FileInfo) file.Info {
	i := file.Info{Path: p, Kind: kindOf(st.Mode()), Size: st.Size(), Mode: bitsOf(st.Mode()), ModifiedAt: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		i.UID, i.GID = int(sys.Uid), int(sys.Gid)
	}
	if i.UID == 0 {
		i.User, i.Group = "root", "root"
	}
	if i.Kind == file.Symlink {
		i.Target, _ = g.root.Readlink(local(p))
	}
	return i
}

func kindOf(mode fs.FileMode) file.Kind {
	switch mode.Type() {
	case 0:
		return file.Regular
	case fs.ModeDir:
		return file.Directory
	case fs.ModeSymlink:
		return file.Symlink
	}
	return file.Other
}

// special are the bits above the permissions, as Go and as Linux has them.
var special = map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000}

func bitsOf(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for theirs, ours := range special {
		if mode&theirs != 0 {
			bits |= ours
		}
	}
	return bits
}

func modeOf(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for theirs, ours := range special {
		if bits&ours != 0 {
			mode |= theirs
		}
	}
	return mode
}

// agentError returns the error that an agent would, for an error of the host's
// file system, and any other error as it is.
func agentError(p string, err error) error {
	kind, code, what := errs.Conflict, "", ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind, code, what = errs.NotFound, "file_not_found", "there is no such file"
	case errors.Is(err, syscall.ENOTEMPTY):
		code, what = "directory_not_empty", "the directory is not empty"
	case errors.Is(err, fs.ErrExist):
		code, what = "file_exists", "the file exists"
	case errors.Is(err, syscall.EISDIR):
		code, what = "is_a_directory", "it is a directory"
	case errors.Is(err, syscall.ENOTDIR):
		code, what = "not_a_directory", "it is no directory"
	case errors.Is(err, fs.ErrPermission):
		kind, code, what = errs.Forbidden, "guest_refused", "the guest refuses it"
	default:
		return err
	}
	return errs.New(kind, code, "%s: %s", p, what).WithCause(err)
}
