package main

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

// get copies out of the guest.
func (j *copying) get(ctx context.Context, from, to string) error {
	source := strings.TrimRight(strings.TrimSuffix(from, "/."), "/")
	if source == "" {
		source = "/"
	}
	f, err := j.files.StatFile(ctx, j.id, source)
	if err == nil && (j.follow || source != from) { // a slash or dot at the end means what is behind a link
		f, err = j.resolve(ctx, source)
	}
	if err != nil {
		return err
	}
	name := path.Base(source)
	if to == "-" {
		return j.getStream(ctx, f)
	}
	switch f.Kind {
	case api.FileRegular:
		return j.getFile(ctx, f, name, to)
	case api.FileSymlink:
		return j.getLink(f, name, to)
	case api.FileDirectory:
		return j.getTree(ctx, f, name, to, endsInDot(from))
	}
	return errors.New("it is a device, socket or pipe")
}

// getStream writes a file's content, or a tree's archive, to stdout.
func (j *copying) getStream(ctx context.Context, f api.File) error {
	var content io.ReadCloser
	var err error
	if f.Kind == api.FileRegular {
		content, err = j.files.ReadFile(ctx, j.id, client.PathOf(f), client.FilePart{})
	} else if j.outTTY {
		return hint(errors.New("an archive is not for a terminal"), "redirect stdout, or pipe it to tar")
	} else {
		content, err = j.files.ReadTree(ctx, j.id, client.PathOf(f))
	}
	if err != nil {
		return err
	}
	defer content.Close()
	out := j.out
	if j.outTTY {
		out = &cleaner{w: j.out}
	}
	_, err = io.Copy(out, content)
	return err
}

// getFile copies one file to a file, or into a directory.
func (j *copying) getFile(ctx context.Context, f api.File, name, to string) error {
	target, existing, err := targetOf(to, name)
	if err != nil {
		return err
	}
	content, err := j.files.ReadFile(ctx, j.id, client.PathOf(f), client.FilePart{})
	if err != nil {
		return err
	}
	defer content.Close()
	j.meter.total = max(content.Size, 0)
	if existing != nil && !existing.Mode().IsRegular() {
		return intoDevice(target, j.meter.counted(content))
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	meta := metadata{mode: modeOf(content.Mode), uid: f.UID, gid: f.GID, modified: f.ModifiedAt}
	return (&unpacker{root: root, keep: j.keep}).save(filepath.Base(target), j.meter.counted(content), meta)
}

// targetOf returns the path that a file is copied to, and what is there if it
// is no directory.
func targetOf(to, name string) (string, fs.FileInfo, error) {
	st, err := os.Stat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(to, "/"):
		return "", nil, fmt.Errorf("%s is no directory", to)
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
		return "", nil, fmt.Errorf("%s is no directory", to)
	}
	target, err := filepath.EvalSymlinks(to)
	return target, st, err
}

// checkName refuses a source whose last part names no file.
func checkName(name string) error {
	if name == "." || name == ".." || name == "/" {
		return errors.New("the source has no name of its own; name the destination")
	}
	return nil
}

// intoDevice writes into what is no regular file, such as /dev/stdout.
func intoDevice(target string, content io.Reader) error {
	f, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// getLink copies a link itself.
func (j *copying) getLink(f api.File, name, to string) error {
	target, _, err := targetOf(to, name)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keep: j.keep}
	base := filepath.Base(target)
	if u.leadsOut(base, client.TargetOf(f)) {
		return hint(fmt.Errorf("it is a link to %s, which is outside of what is copied", client.TargetOf(f)),
			"copy what it leads to with -L, or the link as it is with -a")
	}
	return u.link(base, client.TargetOf(f))
}

// getTree copies a directory: to what is not there yet, into a directory, or
// its contents into one.
func (j *copying) getTree(ctx context.Context, f api.File, name, to string, contents bool) error {
	st, err := os.Stat(to)
	isNew := errors.Is(err, fs.ErrNotExist)
	switch {
	case isNew:
		err = os.Mkdir(to, 0o700)
	case err == nil && !st.IsDir():
		err = fmt.Errorf("a directory cannot be copied to %s, which is none", to)
	}
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keep: j.keep, left: &j.left, owned: isNew}
	if !isNew && !contents {
		if u, err = u.below(name); err != nil {
			return err
		}
		defer func() { _ = u.root.Close() }()
	}
	archive, err := j.files.ReadTree(ctx, j.id, client.PathOf(f))
	if err != nil {
		return err
	}
	defer archive.Close()
	return u.unpack(j.meter.counted(archive))
}

// specialBits are the bits of a mode beside the permissions, as Linux has them.
var specialBits = map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000}

// modeOf returns the mode that Linux's bits mean.
func modeOf(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for m, bit := range specialBits {
		if bits&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// bitsOf returns a mode as Linux has it.
func bitsOf(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for m, bit := range specialBits {
		if mode&m != 0 {
			bits |= bit
		}
	}
	return bits
}

// metadata is what is kept of a file beside its content.
type metadata struct {
	mode     fs.FileMode
	uid, gid int
	modified time.Time
}
