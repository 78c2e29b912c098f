package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// WriteTree implements wire.FileHandler. It writes through an os.Root, so that no name
// and no link of the archive or the guest leads out of the directory. After an error,
// the files unpacked so far stay.
func (f *Files) WriteTree(ctx context.Context, args wire.WriteTreeArgs, archive io.Reader) error {
	to, err := validPath(args.Path)
	if err != nil {
		return err
	}
	u := &unpacker{partials: &f.partials, buf: make([]byte, copyBuffer)}
	if args.Owner != nil {
		owner, err := f.owner(*args.Owner)
		if err != nil {
			return err
		}
		u.owner = &owner
	}
	if err := makeDirectories(to, parentMode, u.ownerOr(ids{})); err != nil {
		return wireError(err)
	}
	if u.root, err = os.OpenRoot(to); err != nil {
		return wireError(err)
	}
	defer u.close()
	content := &source{r: archive}
	err = u.unpack(ctx, tar.NewReader(content))
	if err == nil {
		_, err = io.Copy(io.Discard, content) // read to io.EOF: the transfer is complete
	}
	if err == nil {
		err = u.setTimes("")
	}
	if err == nil {
		err = u.sync()
	}
	if content.err != nil {
		return content.err
	}
	return wireError(err)
}

// source is an archive from the host. It stores an error of the transfer, to tell it
// from one of the archive.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// unpacker unpacks one archive. It opens directories through the root, and does not
// follow links within a directory.
type unpacker struct {
	root     *os.Root
	partials *partials
	owner    *ids // nil means the owners in the archive
	buf      []byte
	dir      *os.File // of the last entry, or nil
	dirName  string
	times    []directoryTime
}

// directoryTime is the modification time of a directory, to be set after its last
// entry.
type directoryTime struct {
	name string
	at   time.Time
}

func (u *unpacker) ownerOr(fallback ids) ids {
	if u.owner != nil {
		return *u.owner
	}
	return fallback
}

func (u *unpacker) unpack(ctx context.Context, archive *tar.Reader) error {
	for ctx.Err() == nil {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.Refuse(wire.CodeInvalidArchive, "cannot read the archive: %v", err)
		}
		name, err := entryName(header.Name)
		if err != nil {
			return err
		}
		if err := u.entry(name, header, archive); err != nil {
			return u.entryError(name, err)
		}
	}
	return ctx.Err()
}

// entryName returns the path of an entry below the directory.
func entryName(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", wire.Refuse(wire.CodeInvalidArchive, "the name %q leads out of the directory", name)
		}
	}
	if name = strings.TrimLeft(path.Clean("/"+name), "/"); name == "" {
		return ".", nil
	}
	return name, nil
}

// entryError adds the entry's name to an error. Errors of os.Root itself have no
// errno.
func (u *unpacker) entryError(name string, err error) error {
	var refused *wire.RemoteError
	var errno unix.Errno
	switch {
	case errors.As(err, &refused):
		return err
	case !errors.As(err, &errno):
		return wire.Refuse(wire.CodeInvalidArchive, "cannot unpack %q: %v", name, errors.Unwrap(err))
	}
	answer := wireError(errno)
	if errors.As(answer, &refused) {
		return wire.Refuse(refused.Code, "cannot unpack %q: %s", name, refused.Message)
	}
	return answer
}

func (u *unpacker) entry(name string, header *tar.Header, content io.Reader) error {
	if name == "." {
		return nil // the directory itself is not changed
	}
	if err := u.setTimes(name); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name, header)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(name, header, content)
	case tar.TypeSymlink:
		return u.symlink(name, header)
	case tar.TypeLink:
		return u.link(name, header)
	default:
		return nil // devices, pipes, and extensions of tar
	}
}

// parent opens the directory of an entry. It creates missing ones.
func (u *unpacker) parent(name string) (dir int, base string, err error) {
	above, base := path.Split(name)
	above = path.Clean("./" + above)
	if u.dir != nil && u.dirName == above {
		return int(u.dir.Fd()), base, nil
	}
	opened, err := u.root.OpenFile(above, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.makeMissing(above); err != nil {
			return 0, "", err
		}
		opened, err = u.root.OpenFile(above, os.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return 0, "", err
	}
	if u.dir != nil {
		_ = u.dir.Close()
	}
	u.dir, u.dirName = opened, above
	return int(opened.Fd()), base, nil
}

// makeMissing creates a directory that has no entry in the archive.
func (u *unpacker) makeMissing(name string) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	created, err := u.mkdir(dir, base)
	if err != nil {
		return err
	}
	defer func() { _ = created.Close() }()
	return setOwnerAndMode(created, parentMode, u.ownerOr(ids{}))
}

func (u *unpacker) mkdir(dir int, base string) (*os.File, error) {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return nil, err
	}
	return openDirectory(dir, base, unix.O_NOFOLLOW)
}

// directory creates a directory, or sets the mode and owner of an existing one. It does
// not change a link to a directory, nor its target.
func (u *unpacker) directory(name string, header *tar.Header) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	opened, err := u.mkdir(dir, base)
	if errors.Is(err, unix.EEXIST) {
		opened, err = openDirectory(dir, base, unix.O_NOFOLLOW)
		if st, statErr := u.root.Stat(name); err != nil && statErr == nil && st.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = opened.Close() }()
	if err := u.setOwnerAndMode(opened, header); err != nil {
		return err
	}
	u.times = append(u.times, directoryTime{name, header.ModTime})
	return nil
}

// setOwnerAndMode clears the setuid and setgid bits if it sets another owner than the
// archive's, for whom they are meant.
func (u *unpacker) setOwnerAndMode(file *os.File, header *tar.Header) error {
	owner, err := u.ownerOf(header)
	if err != nil {
		return err
	}
	mode := uint32(header.Mode) & permissions
	if u.owner != nil {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if err := setOwnerAndMode(file, mode, owner); err != nil {
		return err
	}
	return u.setAttributes(file, header) // a change of the owner removes capabilities
}

func (u *unpacker) ownerOf(header *tar.Header) (ids, error) {
	if u.owner != nil {
		return *u.owner, nil
	}
	const unchanged = 1<<32 - 1 // to Linux
	if header.Uid < 0 || header.Uid >= unchanged || header.Gid < 0 || header.Gid >= unchanged {
		return ids{}, wire.Refuse(wire.CodeInvalidArchive, "%q has an invalid owner: %d:%d", header.Name, header.Uid, header.Gid)
	}
	return ids{uint32(header.Uid), uint32(header.Gid)}, nil
}

// clear removes an existing file with the name of an entry that is not a directory.
func (u *unpacker) clear(name string) (dir int, base string, err error) {
	dir, base, err = u.parent(name)
	if err != nil {
		return 0, "", err
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, "", err
	}
	return dir, base, nil
}

// file writes a file, and replaces an existing one once it is complete. It does not write
// to the existing one, which may have hard links elsewhere.
func (u *unpacker) file(name string, header *tar.Header, content io.Reader) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	part, err := u.partials.create(u.dir)
	if err != nil {
		return err
	}
	defer part.discard()
	if err := writeContent(part.file, content, u.buf); err != nil {
		return err
	}
	if err := u.setOwnerAndMode(part.file, header); err != nil {
		return err
	}
	if err := setTime(dir, part.name, header.ModTime); err != nil {
		return err
	}
	if err := unix.Renameat(dir, part.name, dir, base); err != nil {
		return err
	}
	part.name = ""
	return nil
}

func (u *unpacker) symlink(name string, header *tar.Header) error {
	owner, err := u.ownerOf(header)
	if err != nil {
		return err
	}
	dir, base, err := u.clear(name)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(header.Linkname, dir, base); err != nil {
		return err
	}
	if err := unix.Fchownat(dir, base, int(owner.user), int(owner.group), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return setTime(dir, base, header.ModTime)
}

// link creates a hard link to a file below the directory.
func (u *unpacker) link(name string, header *tar.Header) error {
	target, err := entryName(header.Linkname)
	if err != nil || target == name {
		return err
	}
	above, of := path.Split(target)
	from, err := u.root.OpenFile(path.Clean("./"+above), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	dir, base, err := u.clear(name)
	if err != nil {
		return err
	}
	return unix.Linkat(int(from.Fd()), of, dir, base, 0)
}

// setTimes sets the times of the directories that do not contain name.
func (u *unpacker) setTimes(name string) error {
	for len(u.times) > 0 {
		last := u.times[len(u.times)-1]
		if name != "" && (name == last.name || strings.HasPrefix(name, last.name+"/")) {
			return nil
		}
		dir, base, err := u.parent(last.name)
		if err == nil {
			err = setTime(dir, base, last.at)
		}
		if err != nil {
			return err
		}
		u.times = u.times[:len(u.times)-1]
	}
	return nil
}

func setTime(dir int, base string, at time.Time) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: at.Unix(), Nsec: int64(at.Nanosecond())}}
	return unix.UtimesNanoAt(dir, base, times, unix.AT_SYMLINK_NOFOLLOW)
}

// sync syncs the whole file system once, instead of each file.
func (u *unpacker) sync() error {
	dir, err := u.root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return unix.Syncfs(int(dir.Fd()))
}

func (u *unpacker) close() {
	if u.dir != nil {
		_ = u.dir.Close()
	}
	_ = u.root.Close()
}
