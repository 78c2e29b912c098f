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

// maxLinked limits the hard-linked files that a packer remembers. It packs further ones
// once per name.
const maxLinked = 100_000

// ReadTree implements wire.FileHandler. It does not pack devices, pipes, sockets, and
// generated file systems such as /proc. Files may change during the read.
func (f *Files) ReadTree(ctx context.Context, args wire.PathArgs, began func() error, w wire.FileWriter) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	above, name := split(path)
	if name == "" { // the root, or a slash at the end, which follows a link
		above, name = path, "."
	}
	dir, err := openDirectory(unix.AT_FDCWD, above, 0)
	if err != nil {
		return wireError(err)
	}
	defer func() { _ = dir.Close() }()
	p := &packer{tar: tar.NewWriter(w), names: f.describer(), linked: map[inode]string{}, buf: make([]byte, copyBuffer), attribute: make([]byte, maxAttribute)}
	if err := unix.Fstatat(int(dir.Fd()), name, new(unix.Stat_t), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wireError(err)
	}
	if err := began(); err != nil {
		return err
	}
	if err := p.pack(ctx, int(dir.Fd()), name, archiveName(path)); err != nil {
		return wireError(err)
	}
	return p.tar.Close()
}

// archiveName returns the name of path in its archive, with which all names begin.
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
	linked map[inode]string // first names of hard-linked files
	buf    []byte

	attribute []byte // names of attributes, or the value of one
}

// pack packs the file at name in dir, and the files below it, as path.
func (p *packer) pack(ctx context.Context, dir int, name, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was removed
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

// removed reports whether err means that a file was removed or replaced meanwhile.
func removed(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO)
}

func (p *packer) directory(ctx context.Context, above int, name, path string) error {
	dir, err := openDirectory(above, name, unix.O_NOFOLLOW)
	if removed(err) {
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
	header.PAXRecords = p.attributes(int(dir.Fd()))
	if err := p.tar.WriteHeader(header); err != nil || isGenerated(int(dir.Fd())) {
		return err
	}
	err = eachName(dir, namesAtOnce, func(name string) error {
		return p.pack(ctx, int(dir.Fd()), name, path+"/"+name)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
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

// file packs a regular file, with the size that it has when it is opened.
func (p *packer) file(dir int, name, path string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if removed(err) {
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
	if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 {
		if first, packed := p.linked[id]; packed {
			header.Typeflag, header.Linkname = tar.TypeLink, first
			return p.tar.WriteHeader(header)
		}
		if len(p.linked) < maxLinked {
			p.linked[id] = path
		}
	}
	header.Size, header.PAXRecords = st.Size, p.attributes(fd)
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	return copyExactly(p.tar, file, st.Size, p.buf)
}

// copyExactly copies size bytes. Like tar, it pads a file that has become shorter with
// zeros, and cuts one that has grown.
func copyExactly(w io.Writer, file io.Reader, size int64, buf []byte) error {
	n, err := io.CopyBuffer(w, io.LimitReader(file, size), buf)
	for err == nil && n < size {
		var more int
		more, err = w.Write(zeros[:min(size-n, int64(len(zeros)))])
		n += int64(more)
	}
	return err
}

// header returns a file's header. It does not change names that are not UTF-8: all known
// implementations of tar accept them.
func (p *packer) header(st *unix.Stat_t, path string, kind byte) *tar.Header {
	info := p.names.info(st)
	return &tar.Header{
		Typeflag: kind, Name: path, Mode: int64(info.Mode), Format: tar.FormatPAX,
		Uid: int(info.UID), Gid: int(info.GID), Uname: string(info.User), Gname: string(info.Group),
		ModTime: time.Unix(info.Seconds, info.Nanos),
	}
}
