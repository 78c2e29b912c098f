package main

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

// unpacker writes what a guest sent below one directory. The guest may be
// hostile: root lets nothing out of the directory, whatever names and links
// say, and what could do harm there later is left out.
type unpacker struct {
	root  *os.Root
	keep  bool     // owners, setuid bits and links that lead out
	left  *leftOut // what is not written; nil for single files
	owned bool     // the directory itself is new, and becomes as the archive says

	dirs []directory // to be finished once all is in them
}

// directory is one that was made, and what it shall be like.
type directory struct {
	name string
	metadata
}

// below returns an unpacker into a directory in this one, made when missing.
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
	return &unpacker{root: root, keep: u.keep, left: u.left, owned: isNew}, nil
}

// unpack writes an archive, whose first part of each name is left away.
func (u *unpacker) unpack(archive io.Reader) error {
	in := tar.NewReader(archive)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, archive) // to the end of the answer, which may still fail
			return errors.Join(err, u.finish())
		}
		if err != nil {
			return err
		}
		name, err := belowFirst(header.Name)
		if err != nil {
			return err
		}
		if err := u.one(name, header, in); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// belowFirst returns a name of the archive without its first part; "." when
// there is no more. A name that leads out is hostile, and so is the rest.
func belowFirst(name string) (string, error) {
	if path.IsAbs(name) || strings.ContainsRune(name, 0) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("the VM sent a name that leads out of the tree: %q", name)
	}
	_, rest, _ := strings.Cut(name, "/")
	return path.Clean(rest), nil // "" becomes "."
}

func (u *unpacker) one(name string, header *tar.Header, content io.Reader) error {
	meta := metadata{mode: header.FileInfo().Mode(), uid: header.Uid, gid: header.Gid, modified: header.ModTime}
	if name == "." && header.Typeflag != tar.TypeDir {
		return errors.New("the VM sent something else than a directory")
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name, meta)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.save(name, content, meta)
	case tar.TypeSymlink:
		if u.leadsOut(name, header.Linkname) {
			u.left.add(name, "it is a link to "+header.Linkname+", out of the tree; -a keeps it")
			return nil
		}
		return u.link(name, header.Linkname)
	case tar.TypeLink:
		return u.hardLink(name, header.Linkname)
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.left.add(name, "it is a device, socket or pipe")
	return nil
}

// directory makes one that others can be written into; finish does the rest.
func (u *unpacker) directory(name string, meta metadata) error {
	if name == "." {
		if u.owned {
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
			return nil // somebody's own, and stays as it is
		}
	}
	if err == nil {
		u.dirs = append(u.dirs, directory{name, meta})
	}
	return err
}

// save writes a file beside its place, and puts it there once it is whole.
func (u *unpacker) save(name string, content io.Reader, meta metadata) error {
	beside := path.Join(path.Dir(name), ".hatch-cp-"+rand.Text()[:10])
	f, err := u.root.OpenFile(beside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = u.settle(beside, meta)
	}
	if err == nil {
		err = u.root.Rename(beside, name)
	}
	if err != nil {
		return errors.Join(err, u.root.Remove(beside))
	}
	return nil
}

// settle gives a file or directory of ours its owner, mode and time.
func (u *unpacker) settle(name string, meta metadata) error {
	mode := meta.mode.Perm()
	if u.keep {
		if err := u.root.Lchown(name, meta.uid, meta.gid); err != nil {
			return err
		}
		mode |= meta.mode & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	if err := u.root.Chmod(name, mode); err != nil {
		return err
	}
	return u.root.Chtimes(name, meta.modified, meta.modified)
}

// finish gives directories their modes and times, the deepest first: writing
// into one changes it, and needs leave to. What a later entry has put in the
// place of one is left alone: it may be a way to somebody's own file.
func (u *unpacker) finish() error {
	for _, d := range slices.Backward(u.dirs) {
		if st, err := u.root.Lstat(d.name); err == nil && !st.IsDir() {
			continue
		}
		if err := u.settle(d.name, d.metadata); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// leadsOut reports whether a link would lead out of the directory, or could
// once other links are there: then nothing of ours follows it, but somebody's
// later command might.
func (u *unpacker) leadsOut(name, target string) bool {
	if u.keep {
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
	return up > 0 && (up > strings.Count(name, "/") || !u.isRealDirectory(path.Dir(name)))
}

// isRealDirectory reports whether no part of a path below root is a link.
func (u *unpacker) isRealDirectory(name string) bool {
	for ; name != "."; name = path.Dir(name) {
		if st, err := u.root.Lstat(name); err != nil || !st.IsDir() {
			return false
		}
	}
	return true
}

// link makes a symlink in place of what is there.
func (u *unpacker) link(name, target string) error {
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.Symlink(target, name)
}

func (u *unpacker) hardLink(name, linked string) error {
	old, err := belowFirst(linked)
	if err != nil {
		return err
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.Link(old, name)
}

// clear removes a file or link, and no directory with something in it.
func (u *unpacker) clear(name string) error {
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
