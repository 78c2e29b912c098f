//go:build linux

package sparse

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Duplicate makes the file to with the content and the modification time of from:
// it shares the blocks where the file system can, else it copies. On error no file
// is left.
func (p Part) Duplicate(ctx context.Context, from, to string) error {
	return p.DuplicateWith(from, to, func(dst, src *os.File, size int64) error { return p.Copy(ctx, dst, src, size) })
}

// DuplicateWith is Duplicate that copies with copyTo. dst is one hole of the same
// size as src.
func (p Part) DuplicateWith(from, to string, copyTo func(dst, src *os.File, size int64) error) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("cannot read the %s: %w", p, err)
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("cannot read the %s: %w", p, err)
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot copy the %s: %w", p, err)
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		err = errors.Join(dst.Truncate(0), dst.Truncate(st.Size()))
		if err == nil {
			err = copyTo(dst, src, st.Size())
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

// setModTime sets the time of st, to the nanosecond: it shows whether a disk was
// written to since the machine was saved (see vmm.SavedDisk).
func setModTime(f *os.File, st os.FileInfo) error {
	when, err := unix.TimeToTimespec(st.ModTime())
	if err != nil {
		return fmt.Errorf("cannot read a modification time: %w", err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, when}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), times, 0); err != nil {
		return fmt.Errorf("cannot set a modification time: %w", err)
	}
	return nil
}
