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

// WriteTree implements wire.FileHandler. Everything is written through an
// os.Root: no name and no link, be it the archive's or the guest's, leads out
// of the directory. What was unpacked when something goes wrong stays.
func (f *Files) WriteTree(ctx context.Context, args wire.WriteTreeArgs, archive io.Reader) error {
	to, err := checked(args.Path)
	if err != nil {
		return err
	}
	u := &unpacker{buf: make([]byte, copyBuffer)}
	if args.Owner != nil {
		owner, err := f.owner(*args.Owner)
		if err != nil {
			return err
		}
		u.owner = &owner
	}
	if err := makeDirectories(to, parentMode, u.ownerOr(ids{})); err != nil {
		return refusal(err)
	}
	if u.root, err = os.OpenRoot(to); err != nil {
		return refusal(err)
	}
	defer u.close()
	content := &source{r: archive}
	err = u.unpack(ctx, tar.NewReader(content))
	if err == nil {
		_, err = io.Copy(io.Discard, content) // up to the word that it is whole
	}
	if err == nil {
		err = u.setTimes("")
	}
	if err == nil {
		err = u.sync()
	}
	return content.blame(err)
}

// source is an archive as it comes; it tells what went wrong on the way from
// what is wrong with the archive.
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

func (s *source) blame(err error) error {
	if s.err != nil {
		return s.err
	}
	return refusal(err)
}

// unpacker unpacks one archive. The root finds directories; within one, names
// are taken as they are, and links not followed.
type unpacker struct {
	root    *os.Root
	owner   *ids // nil: as the archive says
	buf     []byte
	dir     *os.File // that of the last entry, or nil
	dirName string
	times   []directoryTime
}

// directoryTime is when a directory changed last, to be set once nothing is put
// into it any more.
type directoryTime struct {
	name string
	at   time.Time
}

func (u *unpacker) ownerOr(other ids) ids {
	if u.owner != nil {
		return *u.owner
	}
	return other
}

func (u *unpacker) unpack(ctx context.Context, archive *tar.Reader) error {
	for ctx.Err() == nil {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.Refuse(wire.CodeInvalidArchive, "the archive is not understood: %v", err)
		}
		name, err := entryName(header.Name)
		if err != nil {
			return err
		}
		if err := u.entry(name, header, archive); err != nil {
			return u.fault(name, err)
		}
	}
	return ctx.Err()
}

// entryName returns where an entry goes, below the directory.
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

// fault says which entry could not be unpacked. What os.Root itself refuses has
// no number of the system's.
func (u *unpacker) fault(name string, err error) error {
	var refused *wire.RemoteError
	var errno unix.Errno
	switch {
	case errors.As(err, &refused):
		return err
	case !errors.As(err, &errno):
		return wire.Refuse(wire.CodeInvalidArchive, "cannot unpack %q: %v", name, errors.Unwrap(err))
	}
	answer := refusal(errno)
	if errors.As(answer, &refused) {
		return wire.Refuse(refused.Code, "cannot unpack %q: %s", name, refused.Message)
	}
	return answer
}

func (u *unpacker) entry(name string, header *tar.Header, content io.Reader) error {
	if name == "." {
		return nil // the directory itself stays as it is
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
		return nil // devices and pipes, and what tars add for themselves
	}
}

// parent opens the directory of an entry, and makes it when it is missing.
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

// makeMissing makes a directory that the archive does not describe.
func (u *unpacker) makeMissing(name string) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	made, err := u.mkdir(dir, base)
	if err != nil {
		return err
	}
	defer func() { _ = made.Close() }()
	return settle(made, parentMode, u.ownerOr(ids{}))
}

func (u *unpacker) mkdir(dir int, base string) (*os.File, error) {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return nil, err
	}
	return openDirectory(dir, base, unix.O_NOFOLLOW)
}

// directory makes one. One that is there gets mode and owner; a link to one
// stays, with what it leads to.
func (u *unpacker) directory(name string, header *tar.Header) error {
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	made, err := u.mkdir(dir, base)
	if errors.Is(err, unix.EEXIST) {
		made, err = openDirectory(dir, base, unix.O_NOFOLLOW)
		if st, statErr := u.root.Stat(name); err != nil && statErr == nil && st.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = made.Close() }()
	if err := u.settle(made, header); err != nil {
		return err
	}
	u.times = append(u.times, directoryTime{name, header.ModTime})
	return nil
}

// settle gives a file mode and owner. What a program may do by its setuid bit
// is meant for the owner in the archive.
func (u *unpacker) settle(file *os.File, header *tar.Header) error {
	owner, err := u.ownerOf(header)
	if err != nil {
		return err
	}
	mode := uint32(header.Mode) & permissions
	if u.owner != nil {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return settle(file, mode, owner)
}

func (u *unpacker) ownerOf(header *tar.Header) (ids, error) {
	if u.owner != nil {
		return *u.owner, nil
	}
	const nobody = 1<<32 - 1 // to Linux, "as it is"
	if header.Uid < 0 || header.Uid >= nobody || header.Gid < 0 || header.Gid >= nobody {
		return ids{}, wire.Refuse(wire.CodeInvalidArchive, "the owner of %q is not one: %d:%d", header.Name, header.Uid, header.Gid)
	}
	return ids{uint32(header.Uid), uint32(header.Gid)}, nil
}

// clear makes room for an entry that is no directory.
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

// file writes one. It does not write into one that is there: that may be the
// same as one elsewhere.
func (u *unpacker) file(name string, header *tar.Header, content io.Reader) error {
	dir, base, err := u.clear(name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), base)
	err = writeContent(file, content, u.buf)
	if err == nil {
		err = u.settle(file, header)
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = setTime(dir, base, header.ModTime)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, base, 0)
	}
	return err
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

// link gives a file that is in the directory already another name.
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

// setTimes sets those of the directories that name is not in.
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

// sync brings everything to the disk: at once, and not file by file.
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
