//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

// duplicate makes the file to with the content and the modification time of
// another: sharing its blocks where the file system can, else with copy, which
// gets a file that is all hole and as large. On error no file is left.
func duplicate(from, to string, copy func(dst, src *os.File, size int64) error) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("cannot read a disk: %w", err)
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("cannot read a disk: %w", err)
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot copy a disk: %w", err)
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		err = errors.Join(dst.Truncate(0), dst.Truncate(st.Size()))
		if err == nil {
			err = copy(dst, src, st.Size())
		}
	}
	if err == nil {
		err = setModTime(dst, st)
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// setModTime takes over the time of st, to the nanosecond: it tells whether a
// disk was written to since the machine was saved (see vmm.SavedDisk).
func setModTime(f *os.File, st os.FileInfo) error {
	when, err := unix.TimeToTimespec(st.ModTime())
	if err != nil {
		return fmt.Errorf("cannot tell when a disk was changed: %w", err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, when}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), times, 0); err != nil {
		return fmt.Errorf("cannot say when a disk was changed: %w", err)
	}
	return nil
}

// CopyDisk implements snapshot.Files.
func (f *Files) CopyDisk(ctx context.Context, id, to string) error {
	if err := f.present(id, diskName); err != nil {
		return refused(id, err)
	}
	return refused(id, duplicate(f.path(id, diskName), to, func(dst, src *os.File, size int64) error {
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
