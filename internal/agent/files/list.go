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

// ListFiles implements wire.FileHandler. It skips entries that are removed meanwhile,
// and lists an entry that it cannot read, such as a broken mount, with its name only.
func (f *Files) ListFiles(ctx context.Context, args wire.PathArgs, began func() error, each func(wire.FileInfo) error) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	dir, err := openDirectory(unix.AT_FDCWD, path, 0)
	if err != nil {
		return wireError(err)
	}
	defer func() { _ = dir.Close() }()
	if err := began(); err != nil {
		return err
	}
	describe := f.describer()
	return wireError(eachName(dir, namesAtOnce, func(name string) error {
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

// namesAtOnce limits the names of a directory in memory to twice as many. A million
// entries need 31 passes.
const namesAtOnce = 32 << 10

// eachName calls do for the names in a directory, sorted. It reads the directory once
// for every atOnce names.
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

// namesAfter returns the first atMost names after last in sorted order, and whether the
// directory has more.
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

// first sorts names, and returns the first atMost of them.
func first(names []string, atMost int) []string {
	slices.Sort(names)
	return names[:min(len(names), atMost)]
}
