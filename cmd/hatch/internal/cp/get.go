package cp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// Get copies the file or tree at from in the VM to the path to, or to stdout.
func (c *Copy) Get(ctx context.Context, from, to string) error {
	source := strings.TrimRight(strings.TrimSuffix(from, "/."), "/")
	if source == "" {
		source = "/"
	}
	f, err := c.Client.StatFile(ctx, c.VM, source)
	if err == nil && (c.FollowLinks || source != from) { // a slash or dot at the end means the target of a link
		f, err = c.resolve(ctx, source)
	}
	if err != nil {
		return err
	}
	name := path.Base(source)
	if to == Stream {
		return c.getStream(ctx, f)
	}
	switch f.Kind {
	case api.FileRegular:
		return c.getFile(ctx, f, name, to)
	case api.FileSymlink:
		return c.getLink(f, name, to)
	case api.FileDirectory:
		return c.getTree(ctx, f, name, to, isContents(from))
	}
	return errors.New(notCopied)
}

// getStream writes the content of a file, or the archive of a tree, to stdout.
func (c *Copy) getStream(ctx context.Context, f api.File) error {
	var content io.ReadCloser
	var err error
	switch {
	case f.Kind == api.FileRegular:
		content, err = c.Client.ReadFile(ctx, c.VM, client.PathOf(f), client.FilePart{})
	case c.StdoutIsTerminal:
		return ErrTerminal
	default:
		content, err = c.Client.ReadTree(ctx, c.VM, client.PathOf(f))
	}
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(c.Stdout, content)
	return err
}

// getFile copies one file to a file, or into a directory.
func (c *Copy) getFile(ctx context.Context, f api.File, name, to string) error {
	target, existing, err := targetOf(to, name)
	if err != nil {
		return err
	}
	c.Progress.total.Store(max(f.Size, 0))
	if existing != nil && !existing.Mode().IsRegular() { // such as /dev/stdout
		out, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		content, err := c.Client.ReadFile(ctx, c.VM, client.PathOf(f), client.FilePart{})
		if err == nil {
			defer content.Close()
			_, err = io.Copy(out, c.counted(content))
		}
		return errors.Join(err, out.Close())
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keepAll: c.KeepAll, skipped: &c.Skipped}
	if c.KeepAll { // only an archive has extended attributes
		archive, err := c.Client.ReadTree(ctx, c.VM, client.PathOf(f))
		if err != nil {
			return err
		}
		defer archive.Close()
		return u.unpackFile(c.counted(archive), filepath.Base(target))
	}
	content, err := c.Client.ReadFile(ctx, c.VM, client.PathOf(f), client.FilePart{})
	if err != nil {
		return err
	}
	defer content.Close()
	meta := metadata{mode: fileMode(content.Mode), uid: f.UID, gid: f.GID, modified: f.ModifiedAt.Time}
	return u.save(filepath.Base(target), c.counted(content), meta)
}

// targetOf returns the path to copy a file to, and the existing file there,
// which is not a directory.
func targetOf(to, name string) (string, fs.FileInfo, error) {
	st, err := os.Stat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(to, "/"):
		return "", nil, fmt.Errorf("%s is not a directory", to)
	case errors.Is(err, fs.ErrNotExist):
		return to, nil, nil
	case err != nil:
		return "", nil, err
	case st.IsDir():
		if err := checkName(name); err != nil {
			return "", nil, err
		}
		target := filepath.Join(to, name)
		if st, err := os.Lstat(target); err == nil && st.IsDir() {
			return "", nil, fmt.Errorf("%s is a directory", target)
		}
		return target, nil, nil
	}
	if strings.HasSuffix(to, "/") {
		return "", nil, fmt.Errorf("%s is not a directory", to)
	}
	target, err := filepath.EvalSymlinks(to)
	return target, st, err
}

// checkName refuses a last path element that does not name a file.
func checkName(name string) error {
	if name == "." || name == ".." || name == "/" {
		return errors.New("the source has no name of its own; name the destination")
	}
	return nil
}

// getLink copies a link itself.
func (c *Copy) getLink(f api.File, name, to string) error {
	target, _, err := targetOf(to, name)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keepAll: c.KeepAll}
	base := filepath.Base(target)
	if u.leadsOut(base, client.TargetOf(f)) {
		return &OutsideError{client.TargetOf(f)}
	}
	return u.link(base, client.TargetOf(f))
}

// getTree copies a directory: as a new directory, into an existing one, or its
// contents into one.
func (c *Copy) getTree(ctx context.Context, f api.File, name, to string, contents bool) error {
	st, err := os.Stat(to)
	isNew := errors.Is(err, fs.ErrNotExist)
	switch {
	case isNew:
		err = os.Mkdir(to, 0o700)
	case err == nil && !st.IsDir():
		err = fmt.Errorf("a directory cannot be copied to %s, which is not one", to)
	}
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keepAll: c.KeepAll, skipped: &c.Skipped, isNew: isNew}
	if !isNew && !contents {
		if u, err = u.below(name); err != nil {
			return err
		}
		defer func() { _ = u.root.Close() }()
	}
	archive, err := c.Client.ReadTree(ctx, c.VM, client.PathOf(f))
	if err != nil {
		return err
	}
	defer archive.Close()
	return u.unpack(c.counted(archive))
}

// specialBits are the mode bits of Linux beside the permissions.
var specialBits = map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000}

// fileMode converts mode bits of Linux.
func fileMode(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for m, bit := range specialBits {
		if bits&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// unixMode converts to mode bits of Linux.
func unixMode(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for m, bit := range specialBits {
		if mode&m != 0 {
			bits |= bit
		}
	}
	return bits
}

// metadata describes a file beside its content.
type metadata struct {
	mode     fs.FileMode
	uid, gid int
	modified time.Time

	attributes map[string]string // extended ones, by name
}
