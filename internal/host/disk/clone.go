package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

// clone makes a new file with the content of another: sharing its blocks where
// the file system can, else copying its data and leaving its holes.
func clone(from, to string) error { return sparse.Duplicate(from, to, copyData) }

// copyData copies the parts of src that hold data, by the kernel: a template has
// few of them.
func copyData(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		begin, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("cannot find the data of a disk: %w", err)
		}
		end, err := src.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("cannot find the data of a disk: %w", err)
		}
		if err := copyExtent(dst, src, begin, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func copyExtent(dst, src *os.File, begin, end int64) error {
	if _, err := dst.Seek(begin, io.SeekStart); err != nil {
		return fmt.Errorf("cannot copy a disk: %w", err)
	}
	if _, err := src.Seek(begin, io.SeekStart); err != nil {
		return fmt.Errorf("cannot copy a disk: %w", err)
	}
	if _, err := io.CopyN(dst, src, end-begin); err != nil {
		return fmt.Errorf("cannot copy a disk: %w", err)
	}
	return nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// Facts is what the file system of a directory can do.
type Facts struct {
	FreeBytes int64
	Reflink   bool // copies share blocks until written
}

// Probe looks at the file system of dir, by cloning a small file in it.
func Probe(dir string) (Facts, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Facts{}, fmt.Errorf("cannot look at the file system of %s: %w", dir, err)
	}
	facts := Facts{FreeBytes: int64(st.Bavail) * st.Bsize}
	src, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return facts, fmt.Errorf("cannot write to %s: %w", dir, err)
	}
	defer func() { _ = src.Close(); _ = os.Remove(src.Name()) }()
	dst, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return facts, fmt.Errorf("cannot write to %s: %w", dir, err)
	}
	defer func() { _ = dst.Close(); _ = os.Remove(dst.Name()) }()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return facts, fmt.Errorf("cannot write to %s: %w", dir, err)
	}
	facts.Reflink = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
	return facts, nil
}
