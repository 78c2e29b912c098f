//go:build linux

package sparse

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Duplicate makes the file to with the content and the modification time of
// another: sharing its blocks where the file system can, else with copy, which
// gets a file that is all hole and as large. On error no file is left.
func Duplicate(from, to string, copy func(dst, src *os.File, size int64) error) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("cannot read what is to be copied: %w", err)
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("cannot read what is to be copied: %w", err)
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a copy: %w", err)
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
		return fmt.Errorf("cannot tell when a file was changed: %w", err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, when}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), times, 0); err != nil {
		return fmt.Errorf("cannot say when a copy was changed: %w", err)
	}
	return nil
}
