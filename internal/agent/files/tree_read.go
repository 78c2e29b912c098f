package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// maxLinked bounds the files with several names that are remembered. Beyond
// them, each name is packed as a file of its own.
const maxLinked = 100_000

// ReadTree implements wire.FileHandler. What changes meanwhile is packed as it
// is found; devices, pipes and sockets are left out, and so is what lies in
// file systems that are made up, such as /proc.
func (f *Files) ReadTree(ctx context.Context, args wire.PathArgs, began func() error, w wire.FileWriter) error {
	path, err := checked(args.Path)
	if err != nil {
		return err
	}
	above, name := split(path)
	if name == "" { // the root, or a link to a directory that is meant
		above, name = path, "."
	}
	dir, err := openDirectory(unix.AT_FDCWD, above, 0)
	if err != nil {
		return refusal(err)
	}
	defer func() { _ = dir.Close() }()
	p := &packer{tar: tar.NewWriter(w), names: f.describer(), linked: map[inode]string{}, buf: make([]byte, copyBuffer)}
	if err := unix.Fstatat(int(dir.Fd()), name, new(unix.Stat_t), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return refusal(err)
	}
	if err := began(); err != nil {
		return err
	}
	if err := p.pack(ctx, int(dir.Fd()), name, archiveName(path)); err != nil {
		return refusal(err)
	}
	return p.tar.Close()
}

// archiveName is what the names in the archive of path begin with.
func archiveName(path string) string {
	for len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	if _, name := split(path); name != "" && name != ".." {
		return name
	}
	return "."
}

type inode struct{ device, number uint64 }

// packer writes one archive.
type packer struct {
	tar    *tar.Writer
	names  *describer
	linked map[inode]string // names of files that have more than one
	buf    []byte
}

// pack packs the file at name in dir, and what is below it, as path.
func (p *packer) pack(ctx context.Context, dir int, name, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // it has vanished
	}
	if err != nil {
		return err
	}
	switch kind(st.Mode) {
	case wire.KindFile:
		err = p.file(dir, name, path)
	case wire.KindDirectory:
		err = p.directory(ctx, dir, name, path)
	case wire.KindSymlink:
		err = p.symlink(dir, name, path, &st)
	}
	return err
}

// gone reports whether err says that a file is not what it was found to be.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO)
}

func (p *packer) directory(ctx context.Context, above int, name, path string) error {
	dir, err := openDirectory(above, name, unix.O_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	header := p.header(&st, path+"/", tar.TypeDir)
	if err := p.tar.WriteHeader(header); err != nil || madeUp(int(dir.Fd())) {
		return err
	}
	err = eachName(dir, namesAtOnce, func(name string) error {
		return p.pack(ctx, int(dir.Fd()), name, path+"/"+name)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // removed while it was read
	}
	return err
}

func (p *packer) symlink(dir int, name, path string, st *unix.Stat_t) error {
	target, err := readLink(dir, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	header := p.header(st, path, tar.TypeSymlink)
	header.Linkname = target
	return p.tar.WriteHeader(header)
}

// file packs a regular file as long as it is when it is opened.
func (p *packer) file(dir int, name, path string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() { _ = file.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind(st.Mode) != wire.KindFile {
		return nil
	}
	header := p.header(&st, path, tar.TypeReg)
	if first, linked := p.linkTo(&st, path); linked {
		header.Typeflag, header.Linkname = tar.TypeLink, first
		return p.tar.WriteHeader(header)
	}
	header.Size = st.Size
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	return copyExactly(p.tar, file, st.Size, p.buf)
}

// linkTo returns the name under which the same file is in the archive.
func (p *packer) linkTo(st *unix.Stat_t, path string) (first string, linked bool) {
	if st.Nlink < 2 {
		return "", false
	}
	id := inode{st.Dev, st.Ino}
	if first, linked = p.linked[id]; !linked && len(p.linked) < maxLinked {
		p.linked[id] = path
	}
	return first, linked
}

// copyExactly copies size bytes. A file that has got shorter meanwhile ends in
// zeros, as tar does it; one that has grown is cut.
func copyExactly(w io.Writer, file io.Reader, size int64, buf []byte) error {
	n, err := io.CopyBuffer(w, io.LimitReader(file, size), buf)
	for err == nil && n < size {
		var more int
		more, err = w.Write(zeros[:min(size-n, int64(len(zeros)))])
		n += int64(more)
	}
	return err
}

// header describes a file. Names that are not UTF-8 go as they are: every tar
// that is known takes them so.
func (p *packer) header(st *unix.Stat_t, path string, kind byte) *tar.Header {
	info := p.names.info(st)
	return &tar.Header{
		Typeflag: kind, Name: path, Mode: int64(info.Mode), Format: tar.FormatPAX,
		Uid: int(info.UID), Gid: int(info.GID), Uname: string(info.User), Gname: string(info.Group),
		ModTime: time.Unix(info.Seconds, info.Nanos),
	}
}
