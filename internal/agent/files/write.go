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

// newMode is the mode of a new file.
const newMode = 0o644

// WriteFile implements wire.FileHandler. It writes to a partial file in the same
// directory, and renames it when the content is synced.
func (f *Files) WriteFile(_ context.Context, args wire.WriteFileArgs, content io.Reader) (wire.FileInfo, error) {
	path, err := validPath(args.Path)
	if err != nil {
		return wire.FileInfo{}, err
	}
	if err := checkPath(args.If, path); err != nil { // before all of the content has come
		return wire.FileInfo{}, wireError(err)
	}
	var owner ids
	if args.Owner != nil {
		if owner, err = f.owner(*args.Owner); err != nil {
			return wire.FileInfo{}, err
		}
	}
	to, err := findDestination(path, args.Parents, owner)
	if err != nil {
		return wire.FileInfo{}, wireError(err)
	}
	defer func() { _ = to.dir.Close() }()
	mode := uint32(newMode)
	if to.old != nil {
		mode = to.old.Mode
		if args.Owner == nil {
			owner = ids{to.old.Uid, to.old.Gid}
		}
	}
	if args.Mode != nil {
		mode = *args.Mode
	}
	st, err := f.replace(to, mode&permissions, owner, content, args.If)
	if err != nil {
		return wire.FileInfo{}, wireError(err)
	}
	info := f.describer().info(st)
	info.Path = args.Path
	return info, nil
}

// replace replaces the file at a destination if the condition holds at the end of the
// content, and returns the new one's stat.
func (f *Files) replace(to *destination, mode uint32, owner ids, content io.Reader, condition *wire.FileCondition) (*unix.Stat_t, error) {
	if err := f.partials.sweep(to.dir); err != nil {
		return nil, err
	}
	part, err := f.partials.create(to.dir)
	if err != nil {
		return nil, err
	}
	defer part.discard()
	if err := writeContent(part.file, content, nil); err != nil {
		return nil, err
	}
	if err := setOwnerAndMode(part.file, mode, owner); err != nil {
		return nil, err
	}
	if err := part.file.Sync(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(part.file.Fd()), &st); err != nil {
		return nil, err
	}
	if err := f.moveIf(condition, part, to.name); err != nil {
		return nil, err
	}
	part.name = ""
	return &st, to.dir.Sync()
}

// destination is a name in an open directory.
type destination struct {
	dir  *os.File
	name string
	old  *unix.Stat_t // of the existing file; nil if there is none
}

// maxLinks is how many links are followed at most, as in the kernel.
const maxLinks = 40

// findDestination follows links, even to a file that does not exist, as an editor does.
// It creates missing parents for the owner.
func findDestination(path string, parents bool, owner ids) (*destination, error) {
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
		to, target, err := lookUp(dir, name)
		if err != nil || target == "" {
			if err != nil {
				_ = dir.Close()
			}
			return to, err
		}
		_ = dir.Close()
		if target[0] != '/' {
			target = above + "/" + target
		}
		path = target
	}
	return nil, unix.ELOOP
}

// lookUp returns the destination, or the target of a link.
func lookUp(dir *os.File, name string) (to *destination, target string, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return &destination{dir: dir, name: name}, "", nil
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
		return &destination{dir: dir, name: name, old: &st}, "", nil
	default:
		return nil, "", errNotFile
	}
}

// writeContent writes content to an empty file. Long runs of zeros become holes. If
// content is not an io.WriterTo, it is copied through buf, or through a new buffer if buf
// is nil.
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

// sparse writes to a file, but skips blocks of zeros.
type sparse struct {
	file *os.File
	end  int64 // offset after all writes
	hole bool  // the file ends before end
}

var zeros [copyBuffer]byte

// minHole is the size of the smallest hole, in bytes.
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
