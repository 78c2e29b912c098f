package recipe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// epoch is the modification time of newer files of an image, and the creation time
// of its file system: 2026-01-01 00:00 UTC.
const epoch = 1767225600

// Fixed, because they are random otherwise. All images share them; a VM sees one
// image only.
const (
	uuid     = "68617463-682d-4726-8f6f-742d696d6167"
	hashSeed = "2f0c7d3e-8a41-4b7e-9d53-68617463686d"
)

// makeExt4 makes an ext4 file system that depends on the tree only. The order of
// directory entries is the tree's; times that mke2fs takes from the clock are set
// afterwards.
func (j *job) makeExt4(ctx context.Context, root, path string, mib int) error {
	if err := clampTimes(root); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close()); err != nil {
		return err
	}
	err = j.run(ctx, "", "env", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch), "mke2fs", "-q", "-F", "-t", "ext4",
		"-O", "^has_journal", "-m", "0", "-L", "hatch-root", "-U", uuid, "-E", "hash_seed="+hashSeed+",root_owner=0:0,nodiscard",
		"-d", root, path)
	if err != nil {
		return err
	}
	return j.setTimes(ctx, root, path)
}

// clampTimes sets the time of every file that is newer than epoch to epoch.
func clampTimes(root string) error {
	limit := time.Unix(epoch, 0)
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || !info.ModTime().After(limit) {
			return err
		}
		stamp := []unix.Timespec{{Sec: epoch}, {Sec: epoch}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, stamp, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// setTimes sets the times of access and change of every inode: mke2fs copies them
// from the tree, in which they cannot be set.
func (j *job) setTimes(ctx context.Context, root, path string) error {
	inodes, err := countInodes(root)
	if err != nil {
		return err
	}
	const firstFree = 11 // lost+found; ext4 uses the inodes before
	script := filepath.Join(j.tmp, "times")
	f, err := os.Create(script)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	set := func(inode int) {
		for _, field := range []string{"atime", "ctime", "crtime"} {
			_, _ = fmt.Fprintf(w, "sif <%d> %s @%d\nsif <%d> %s_extra 0\n", inode, field, epoch, inode, field)
		}
	}
	set(2) // the root directory
	for inode := firstFree; inode < firstFree+inodes; inode++ {
		set(inode)
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return err
	}
	var quiet strings.Builder
	silent := &job{tmp: j.tmp, scratch: j.scratch, progress: &quiet}
	return silent.run(ctx, "", "env", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch), "debugfs", "-w", "-f", script, path)
}

// countInodes counts the files of a tree, hard links once, without its root.
func countInodes(root string) (int, error) {
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		seen[st.Ino] = true
		return nil
	})
	return len(seen), err // the root counts for lost+found
}
