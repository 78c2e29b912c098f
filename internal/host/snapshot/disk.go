//go:build linux

package snapshot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/space"
)

// CopyDisk implements snapshot.Files.
func (f *Files) CopyDisk(ctx context.Context, id, to string) error {
	if err := f.present(id, diskName); err != nil {
		return refused(id, err)
	}
	return refused(id, disk.DuplicateWith(f.path(id, diskName), to, func(dst, src *os.File, size int64) error {
		if err := f.requireSpaceFor(src); err != nil {
			return err
		}
		f.mu.Lock()
		l := f.loaded[id]
		ephemeral := l != nil && l.ephemeral
		f.mu.Unlock()
		if ephemeral { // it has no checksums
			return disk.Copy(ctx, dst, src, size)
		}
		return f.copyDiskChecked(ctx, dst, id)
	}))
}

// requireSpaceFor checks that the host's disk has space for a copy of src.
func (f *Files) requireSpaceFor(src *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return fmt.Errorf("cannot read a disk: %w", err)
	}
	return space.Require(f.root, "a copy of the disk in the snapshot", st.Blocks*512, f.reserve)
}

func (f *Files) copyDiskChecked(ctx context.Context, dst *os.File, id string) error {
	x, src, err := f.open(id, disk)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return disk.CopyChecked(ctx, dst, src, x)
}
