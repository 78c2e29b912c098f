package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// newMode is that of a new file.
const newMode = 0o644

// WriteFile implements wire.FileHandler. The content goes to a file beside the
// one at the path, and takes its place when all of it is on the disk.
func (f *Files) WriteFile(_ context.Context, args wire.WriteFileArgs, content io.Reader) (wire.FileInfo, error) {
	path, err := checked(args.Path)
	if err != nil {
		return wire.FileInfo{}, err
	}
	var owner ids
	if args.Owner != nil {
		if owner, err = f.owner(*args.Owner); err != nil {
			return wire.FileInfo{}, err
		}
	}
	p, err := findPlace(path, args.Parents, owner)
	if err != nil {
		return wire.FileInfo{}, refusal(err)
	}
	defer func() { _ = p.dir.Close() }()
	mode := uint32(newMode)
	if p.old != nil {
		mode = p.old.Mode
		if args.Owner == nil {
			owner = ids{p.old.Uid, p.old.Gid}
		}
	}
	if args.Mode != nil {
		mode = *args.Mode
	}
	st, err := f.replace(p, mode&permissions, owner, content)
	if err != nil {
		return wire.FileInfo{}, refusal(err)
	}
	info := f.describer().info(st)
	info.Path = args.Path
	return info, nil
}

// replace puts a file with this content into its place.
func (f *Files) replace(p *place, mode uint32, owner ids, content io.Reader) (*unix.Stat_t, error) {
	part, err := f.partials.create(p.dir)
	if err != nil {
		return nil, err
	}
	defer part.discard()
	if err := writeContent(part.file, content, nil); err != nil {
		return nil, err
	}
	if err := settle(part.file, mode, owner); err != nil {
		return nil, err
	}
	if err := part.file.Sync(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(part.file.Fd()), &st); err != nil {
		return nil, err
	}
	if err := part.moveTo(p.name); err != nil {
		return nil, err
	}
	return &st, p.dir.Sync()
}

// place is a name in an open directory.
type place struct {
	dir  *os.File
	name string
	old  *unix.Stat_t // the file that is there; nil when there is none
}

// maxLinks is how many links are followed, as the kernel does.
const maxLinks = 40

// findPlace follows links as an editor would: the file that they name is
// written, be it there or not. Missing directories are made for the owner.
func findPlace(path string, parents bool, owner ids) (*place, error) {
	for range maxLinks {
		above, name := split(path)
		if name == "" || name == "." || name == ".." {
			return nil, unix.EISDIR
		}
		dir, err := openDirectory(unix.AT_FDCWD, above, 0)
		if parents && errors.Is(err, unix.ENOENT) {
			if err := makeDirectories(above, parentMode, owner); err != nil {
				return nil, err
			}
			dir, err = openDirectory(unix.AT_FDCWD, above, 0)
		}
		if err != nil {
			return nil, err
		}
		p, target, err := lookAt(dir, name)
		if err != nil || target == "" {
			if err != nil {
				_ = dir.Close()
			}
			return p, err
		}
		_ = dir.Close()
		if target[0] != '/' {
			target = above + "/" + target
		}
		path = target
	}
	return nil, unix.ELOOP
}

// lookAt returns the place, or what the link there says.
func lookAt(dir *os.File, name string) (p *place, target string, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return &place{dir: dir, name: name}, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	switch kind(st.Mode) {
	case wire.KindSymlink:
		target, err := readLink(int(dir.Fd()), name)
		return nil, target, err
	case wire.KindDirectory:
		return nil, "", unix.EISDIR
	case wire.KindFile:
		return &place{dir: dir, name: name, old: &st}, "", nil
	default:
		return nil, "", errNotFile
	}
}

// writeContent writes content at the beginning of an empty file. Long runs of
// zeros become holes. A content that does not write itself takes buf, or a
// buffer of its own when that is nil.
func writeContent(file *os.File, content io.Reader, buf []byte) error {
	w := &sparse{file: file}
	if _, err := io.CopyBuffer(w, content, buf); err != nil {
		return err
	}
	if w.hole {
		return file.Truncate(w.end)
	}
	return nil
}

const copyBuffer = 64 << 10 // bytes

// sparse writes to a file what it gets, but for pieces of nothing but zeros.
type sparse struct {
	file *os.File
	end  int64 // of what was given
	hole bool  // the file ends before that
}

var zeros [copyBuffer]byte

// minHole is the least run of zeros that becomes a hole, in bytes.
const minHole = 4 << 10

func (s *sparse) Write(p []byte) (int, error) {
	if len(p) >= minHole && len(p) <= len(zeros) && bytes.Equal(p, zeros[:len(p)]) {
		s.end += int64(len(p))
		s.hole = true
		return len(p), nil
	}
	n, err := s.file.WriteAt(p, s.end)
	s.end += int64(n)
	s.hole = s.hole && n == 0
	return n, err
}
