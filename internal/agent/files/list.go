package files

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// ListFiles implements wire.FileHandler. Entries that vanish meanwhile are left
// out; of one that the system does not describe, such as a mount that is broken,
// there is the name.
func (f *Files) ListFiles(ctx context.Context, args wire.PathArgs, began func() error, each func(wire.FileInfo) error) error {
	path, err := checked(args.Path)
	if err != nil {
		return err
	}
	dir, err := openDirectory(unix.AT_FDCWD, path, 0)
	if err != nil {
		return refusal(err)
	}
	defer func() { _ = dir.Close() }()
	if err := began(); err != nil {
		return err
	}
	describe := f.describer()
	return refusal(eachName(dir, namesAtOnce, func(name string) error {
		info, err := describe.at(int(dir.Fd()), name)
		if errors.Is(err, unix.ENOENT) {
			return ctx.Err()
		}
		if err != nil {
			info = wire.FileInfo{Kind: wire.KindOther}
		}
		info.Path = []byte(name)
		return errors.Join(ctx.Err(), each(info))
	}))
}

func openDirectory(dir int, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// namesAtOnce is how many names of a directory are kept: a million entries are
// sorted in 31 passes, in the memory for twice as many names.
const namesAtOnce = 32 << 10

// eachName calls do for the names in a directory in their order. It reads the
// directory once for each atOnce names: those that come next of all.
func eachName(dir *os.File, atOnce int, do func(name string) error) error {
	last := ""
	for {
		names, more, err := namesAfter(dir, last, atOnce)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		last = names[len(names)-1]
	}
}

// namesAfter returns the first names in order behind last, at most so many, and
// whether there are more.
func namesAfter(dir *os.File, last string, atMost int) (names []string, more bool, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, false, err
	}
	for {
		found, err := dir.Readdirnames(1024)
		for _, name := range found {
			if name > last {
				names = append(names, name)
			}
		}
		if len(names) >= 2*atMost {
			names, more = first(names, atMost), true
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, err
		}
	}
	more = more || len(names) > atMost
	return first(names, atMost), more, nil
}

// first sorts names and returns the first ones.
func first(names []string, atMost int) []string {
	slices.Sort(names)
	return names[:min(len(names), atMost)]
}
