package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
)

// template returns an empty ext4 file system of this size with the directories
// that the overlay needs, made at the first use. Formatting takes tens of
// milliseconds, copying less than two.
//
// The copies share a UUID, which does no harm: a VM never sees another's disk.
func (f *Files) template(ctx context.Context, mib int) (string, error) {
	path := filepath.Join(f.templates, fmt.Sprintf("overlay-%dM.ext4", mib))
	making := f.lockOf(mib)
	making.Lock() // held during mke2fs: other calls for this size wait
	defer making.Unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read the disk template: %w", err)
	}
	if err := os.MkdirAll(f.templates, 0o700); err != nil {
		return "", fmt.Errorf("cannot make the directory for disk templates: %w", err)
	}
	return path, format(ctx, path, mib)
}

// lockOf returns the lock for making the template of this size.
func (f *Files) lockOf(mib int) *sync.Mutex {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.making[mib] == nil {
		f.making[mib] = &sync.Mutex{}
	}
	return f.making[mib]
}

// format makes the file system beside path and moves it there once it is complete.
func format(ctx context.Context, path string, mib int) (err error) {
	tmp := path + ".new"
	content, err := os.MkdirTemp("", "hatch-overlay-")
	if err != nil {
		return fmt.Errorf("cannot make a disk template: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(content)) }()
	for _, dir := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(content, dir), 0o755); err != nil {
			return fmt.Errorf("cannot make a disk template: %w", err)
		}
	}
	file, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a disk template: %w", err)
	}
	err = errors.Join(file.Truncate(int64(mib)<<20), file.Close())
	if err == nil {
		err = mke2fs(ctx, tmp, content)
	}
	if err == nil { // before the rename: a truncated template would damage every VM made from it
		err = sparse.Sync(tmp)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return os.Rename(tmp, path)
}

// mke2fs formats path. Root owns the root directory, also when another user
// formats it, and no blocks are reserved for root: the disk is the guest's alone.
func mke2fs(ctx context.Context, path, content string) error {
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard", "-d", content, path)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errs.New(errs.Unsupported, "mke2fs_missing", "cannot format a disk: the program mke2fs is not on this host").
			WithHint("apt-get install e2fsprogs")
	}
	if err != nil {
		return fmt.Errorf("cannot format a disk: mke2fs: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
