package cp

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// unpacker writes files that a VM sent below one directory. The VM may be
// hostile: root allows no path out of the directory, and entries that could do
// harm there later are skipped.
type unpacker struct {
	root    *os.Root
	keepAll bool     // owners, setuid bits, attributes and links out of the tree
	skipped *Skipped // nil for a single link
	isNew   bool     // the directory itself is new, and gets the metadata of the archive

	dirs   []directory // get their metadata once all files are in them
	volume volume
}

// volume compares what an archive had with what was made of it, in bytes. The agent
// sends files as they are; in a sparse file, a few bytes stand for any number of zeros,
// which would fill this machine's disk.
type volume struct{ received, written int64 }

var errExpands = errors.New("the VM sent a sparse file, which would take more space on this machine than what was sent; nothing of it is kept")

// in counts what r has.
func (v *volume) in(r io.Reader) io.Reader { return counter{r, &v.received, nil} }

// out counts the content of a file, and fails once there is more than was received.
func (v *volume) out(r io.Reader) io.Reader { return counter{r, &v.written, &v.received} }

type counter struct {
	r     io.Reader
	count *int64
	limit *int64 // nil: none
}

// Read implements io.Reader.
func (c counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if *c.count += int64(n); c.limit != nil && *c.count > *c.limit {
		return 0, errExpands
	}
	return n, err
}

// directory is a new directory and its final metadata.
type directory struct {
	name string
	metadata
}

// below returns an unpacker for a directory in this one, created if missing.
func (u *unpacker) below(name string) (*unpacker, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	err := u.root.Mkdir(name, 0o700)
	isNew := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := u.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return &unpacker{root: root, keepAll: u.keepAll, skipped: u.skipped, isNew: isNew}, nil
}

// unpack writes an archive. The first element of each name is dropped.
func (u *unpacker) unpack(archive io.Reader) error {
	in := tar.NewReader(u.volume.in(archive))
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, archive) // the rest of the response may still fail
			return errors.Join(err, u.finishDirs())
		}
		if err != nil {
			return err
		}
		name, err := withoutFirst(header.Name)
		if err != nil {
			return err
		}
		if err := u.entry(name, header, in); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// unpackFile writes the only file of an archive.
func (u *unpacker) unpackFile(archive io.Reader, name string) error {
	in := tar.NewReader(u.volume.in(archive))
	header, err := in.Next()
	if err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return errors.New("the VM sent something else than a file")
	}
	if err := u.save(name, u.volume.out(in), metadataIn(header)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, archive) // as in unpack
	return err
}

func metadataIn(header *tar.Header) metadata {
	return metadata{
		mode: header.FileInfo().Mode(), uid: header.Uid, gid: header.Gid, modified: header.ModTime,
		attributes: attributesIn(header),
	}
}

// withoutFirst drops the first element of a name in the archive; "." is left of
// a single one. A name that leads out of the tree is an error: the VM is
// hostile then, and so is the rest of the archive.
func withoutFirst(name string) (string, error) {
	if path.IsAbs(name) || strings.ContainsRune(name, 0) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("the VM sent a name that leads out of the tree: %q", name)
	}
	_, rest, _ := strings.Cut(name, "/")
	return path.Clean(rest), nil // "" becomes "."
}

func (u *unpacker) entry(name string, header *tar.Header, content io.Reader) error {
	meta := metadataIn(header)
	if name == "." && header.Typeflag != tar.TypeDir {
		return errors.New("the VM sent something else than a directory")
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name, meta)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.save(name, u.volume.out(content), meta)
	case tar.TypeSymlink:
		if u.leadsOut(name, header.Linkname) {
			u.skipped.add(name, "it is a link to "+header.Linkname+", out of the tree; -a keeps it")
			return nil
		}
		return u.link(name, header.Linkname)
	case tar.TypeLink:
		old, err := withoutFirst(header.Linkname)
		if err == nil {
			err = u.removeFile(name)
		}
		if err == nil {
			err = u.root.Link(old, name)
		}
		return err
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.skipped.add(name, notCopied)
	return nil
}

// directory creates a writable directory; finishDirs sets its metadata. An
// existing one keeps its own.
func (u *unpacker) directory(name string, meta metadata) error {
	if name == "." {
		if u.isNew {
			u.dirs = append(u.dirs, directory{name, meta})
		}
		return nil
	}
	err := u.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		st, statErr := u.root.Stat(name)
		if statErr != nil {
			return statErr
		}
		if st.IsDir() {
			return nil
		}
	}
	if err == nil {
		u.dirs = append(u.dirs, directory{name, meta})
	}
	return err
}

// save writes a temporary file and renames it once it is complete.
func (u *unpacker) save(name string, content io.Reader, meta metadata) error {
	temp := path.Join(path.Dir(name), ".hatch-cp-"+rand.Text()[:10])
	f, err := u.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = copyWithHoles(f, content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = u.setMetadata(temp, name, meta)
	}
	if err == nil {
		err = u.root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, u.root.Remove(temp))
	}
	return nil
}

// setMetadata sets owner, attributes, mode and time of a file or directory that the
// unpacker created, in an order in which none changes those before it. It is, or will
// be, shown to the user as another name.
func (u *unpacker) setMetadata(name, shown string, meta metadata) error {
	mode := meta.mode.Perm() | meta.mode&fs.ModeSticky
	if u.keepAll {
		if err := u.root.Lchown(name, meta.uid, meta.gid); err != nil {
			return err
		}
		if err := u.setAttributes(name, shown, meta.attributes); err != nil {
			return err
		}
		mode |= meta.mode & (fs.ModeSetuid | fs.ModeSetgid)
	}
	if err := u.root.Chmod(name, mode); err != nil {
		return err
	}
	return u.root.Chtimes(name, meta.modified, meta.modified)
}

// finishDirs sets the metadata of new directories, the deepest first: writing
// into a directory changes its time and needs its permission. A directory that a
// later entry has replaced is skipped: it may be a link to a file of the user.
func (u *unpacker) finishDirs() error {
	for _, d := range slices.Backward(u.dirs) {
		if st, err := u.root.Lstat(d.name); err == nil && !st.IsDir() {
			continue
		}
		if err := u.setMetadata(d.name, d.name, d.metadata); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// leadsOut reports whether a link leads out of the directory, or could once
// other links exist: the unpacker would not follow it, but a later command of
// the user might.
func (u *unpacker) leadsOut(name, target string) bool {
	if u.keepAll {
		return false
	}
	up, rest := 0, target
	for strings.HasPrefix(rest+"/", "../") {
		up++
		rest = strings.TrimLeft(strings.TrimPrefix(rest, ".."), "/")
	}
	if path.IsAbs(target) || slices.Contains(strings.Split(rest, "/"), "..") {
		return true
	}
	if up == 0 {
		return false
	}
	if up > strings.Count(name, "/") {
		return true
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) { // a link in between changes what .. means
		if st, err := u.root.Lstat(dir); err != nil || !st.IsDir() {
			return true
		}
	}
	return false
}

// link creates a symlink in place of an existing file or link.
func (u *unpacker) link(name, target string) error {
	if err := u.removeFile(name); err != nil {
		return err
	}
	return u.root.Symlink(target, name)
}

// removeFile removes a file, link or empty directory if there is one.
func (u *unpacker) removeFile(name string) error {
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
