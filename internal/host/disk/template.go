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
)

// template returns an empty ext4 file system of this size with the directories
// the overlay needs, made at the first use. Formatting takes tens of
// milliseconds; copying what it wrote takes less than two.
//
// The copies share a UUID. That does no harm: a VM never sees another's disk.
func (f *Files) template(ctx context.Context, mib int) (string, error) {
	path := filepath.Join(f.templates, fmt.Sprintf("overlay-%dM.ext4", mib))
	one := f.maker(mib)
	one.Lock() // held while mke2fs runs: others that want this very size wait for it
	defer one.Unlock()
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

// maker returns the lock for making the template of one size.
func (f *Files) maker(mib int) *sync.Mutex {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.making[mib] == nil {
		f.making[mib] = &sync.Mutex{}
	}
	return f.making[mib]
}

// format makes the file system beside path and moves it there when whole.
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
	err = allHole(tmp, int64(mib)<<20)
	if err == nil {
		err = mke2fs(ctx, tmp, content)
	}
	if err == nil {
		err = flush(tmp)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return os.Rename(tmp, path)
}

// flush brings a file to the disk before it gets its name: a template that a
// crash of the host has cut short would spoil every VM made from it.
func flush(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot keep a disk template: %w", err)
	}
	return errors.Join(file.Sync(), file.Close())
}

func allHole(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a disk template: %w", err)
	}
	return errors.Join(file.Truncate(size), file.Close())
}

// mke2fs formats path. The root of the file system belongs to root whoever
// formats it, and no block is kept for root: the disk is the guest's alone.
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
