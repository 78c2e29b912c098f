//go:build linux

package snapshot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

// CopyDisk implements snapshot.Files.
func (f *Files) CopyDisk(ctx context.Context, id, to string) error {
	if err := f.present(id, diskName); err != nil {
		return refused(id, err)
	}
	return refused(id, sparse.Duplicate(f.path(id, diskName), to, func(dst, src *os.File, size int64) error {
		if err := f.requireRoomFor(src); err != nil {
			return err
		}
		if !f.isPassing(id) {
			return f.copyChecked(ctx, dst, id)
		}
		return disk.Copy(ctx, dst, src, size) // it is as young as its fork
	}))
}

// requireRoomFor finds out whether the disk can take what a file takes once more.
func (f *Files) requireRoomFor(src *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return fmt.Errorf("cannot read a disk: %w", err)
	}
	return f.requireRoom("a copy of the disk in the snapshot", st.Blocks*512)
}

func (f *Files) copyChecked(ctx context.Context, dst *os.File, id string) error {
	x, src, err := f.openDisk(id)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return disk.CopyChecked(ctx, dst, src, x)
}

// openDisk opens the disk of a snapshot that was sealed, to be checked.
func (f *Files) openDisk(id string) (x sparse.Index, src *os.File, err error) {
	if err := f.present(id, diskIndex, diskName); err != nil {
		return sparse.Index{}, nil, err
	}
	if x, err = disk.ReadIndex(f.path(id, diskIndex)); err != nil {
		return sparse.Index{}, nil, err
	}
	src, err = disk.Open(f.path(id, diskName), x)
	return x, src, err
}
