// Package disk keeps each VM's own files in a directory of its own: the disk
// with what the guest has written, and the NoCloud disk that seeds cloud-init.
//
// It makes sparse files from templates and never formats per VM, never mounts
// and never touches an image. What lies in the directory is documented in
// docs/reference/data-directory.md. Start at [Files].
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ vm.Files = (*Files)(nil)

// Names of the files in a VM's directory.
const (
	diskName = "disk.img"
	seedName = "seed.iso"
)

// Serials by which the agent in the initramfs finds the disks.
const (
	serialRoot = "hatch-root" // the image's root file system, read-only
	serialDisk = "hatch-disk" // the VM's own
	serialSeed = "hatch-seed" // NoCloud
)

// Files keeps the VMs' directories below one root.
type Files struct {
	root      string
	templates string // empty file systems by size, to copy from

	mu     sync.Mutex // guards making
	making map[int]*sync.Mutex
}

// New returns files below root. templates is a directory for empty file
// systems, on the same file system as root.
func New(root, templates string) *Files {
	return &Files{root: root, templates: templates, making: map[int]*sync.Mutex{}}
}

// Dir returns the VM's directory, whether it exists or not.
func (f *Files) Dir(vmID string) string { return filepath.Join(f.root, vmID) }

// Disk returns the path of the VM's own disk, whether it exists or not.
func (f *Files) Disk(vmID string) string { return filepath.Join(f.Dir(vmID), diskName) }

// Provision makes the VM's directory with its disk and seed. On error nothing
// of it is left. Errors: errs.Invalid with field disk_mib; errs.Exhausted when
// the host's disk is full.
func (f *Files) Provision(ctx context.Context, v vm.VM) error {
	return f.ProvisionFrom(ctx, v, func(ctx context.Context, path string) error { return f.makeDisk(ctx, v, path) })
}

// ProvisionFrom does so with a disk that fill makes at the path it is given.
func (f *Files) ProvisionFrom(ctx context.Context, v vm.VM, fill func(ctx context.Context, path string) error) error {
	dir := f.Dir(v.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the VM's directory: %w", full(err))
	}
	err := fill(ctx, f.Disk(v.ID))
	if err == nil {
		err = f.Seed(ctx, v)
	}
	if err != nil {
		return errors.Join(full(err), os.RemoveAll(dir))
	}
	return nil
}

func (f *Files) makeDisk(ctx context.Context, v vm.VM, to string) error {
	if v.Boot.DiskMode == image.DiskCopy {
		return copyRoot(to, v)
	}
	from, err := f.template(ctx, v.DiskMiB)
	if err != nil {
		return err
	}
	return clone(from, to)
}

// copyRoot makes a private copy of the image's root, as large as the VM's disk.
func copyRoot(to string, v vm.VM) error {
	size := int64(v.DiskMiB) << 20
	if size < v.Boot.Rootfs.Size {
		return errs.InvalidField("disk_mib", "%d is too small; the image's root file system has %d MiB", v.DiskMiB, v.Boot.Rootfs.Size>>20)
	}
	if err := clone(v.Boot.Rootfs.Path, to); err != nil {
		return err
	}
	return os.Truncate(to, size)
}

// full turns "no space left" into words for whoever asked.
func full(err error) error {
	if isNoSpace(err) {
		return errs.New(errs.Exhausted, "disk_full", "the host's disk is full").
			WithHint("delete VMs or images, or give the data directory more room").WithCause(err)
	}
	return err
}

// Disks returns the VM's disks in the order the guest sees them; disk is the
// file that is its own. Errors: errs.Conflict with code disk_missing.
func (f *Files) Disks(v vm.VM, disk string) ([]vmm.Disk, error) {
	seed := filepath.Join(f.Dir(v.ID), seedName)
	if _, err := os.Stat(disk); err != nil {
		return nil, errs.New(errs.Conflict, "disk_missing", "the disk of VM %s is gone", v.ID).
			WithHint("put it back into the data directory, or delete the VM").WithCause(err)
	}
	own := []vmm.Disk{
		{Serial: serialDisk, Path: disk},
		{Serial: serialSeed, Path: seed, ReadOnly: true},
	}
	if v.Boot.DiskMode == image.DiskCopy {
		return own, nil
	}
	return append([]vmm.Disk{{Serial: serialRoot, Path: v.Boot.Rootfs.Path, ReadOnly: true}}, own...), nil
}

// Remove deletes the VM's directory. Nothing there is no error.
func (f *Files) Remove(vmID string) error {
	if !isVMID(vmID) {
		return fmt.Errorf("cannot remove the files of %q: it is no id of a VM", vmID)
	}
	if err := os.RemoveAll(f.Dir(vmID)); err != nil {
		return fmt.Errorf("cannot remove the VM's directory: %w", err)
	}
	return nil
}

// SetAside moves the VM's directory to lost/ beside the root, under a name with
// the time. Nothing there is no error.
func (f *Files) SetAside(vmID string) error {
	if !isVMID(vmID) {
		return fmt.Errorf("cannot set the files of %q aside: it is no id of a VM", vmID)
	}
	lost := filepath.Join(filepath.Dir(f.root), "lost")
	if err := os.MkdirAll(lost, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory for lost files: %w", err)
	}
	to := filepath.Join(lost, vmID+"-"+time.Now().UTC().Format("20060102T150405.000"))
	if err := ignoreMissing(os.Rename(f.Dir(vmID), to)); err != nil {
		return fmt.Errorf("cannot set the VM's directory aside: %w", err)
	}
	return nil
}

// Orphans lists the directories that have no VM among known.
func (f *Files) Orphans(known map[string]bool) ([]string, error) {
	entries, err := os.ReadDir(f.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the VMs' directories: %w", err)
	}
	var orphans []string
	for _, e := range entries {
		if e.IsDir() && isVMID(e.Name()) && !known[e.Name()] {
			orphans = append(orphans, e.Name())
		}
	}
	return orphans, nil
}

// Allocated returns how many bytes of the host's disk the VM's files take. A
// sparse file takes what was written to it only; blocks that files share, as
// after a reflink, count for each of them.
func (f *Files) Allocated(vmID string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(f.Dir(vmID), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return ignoreMissing(err)
		}
		info, err := e.Info()
		if err != nil {
			return ignoreMissing(err) // deleted just now
		}
		sum += info.Sys().(*syscall.Stat_t).Blocks * blockSize
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("cannot tell the size of the VM's files: %w", err)
	}
	return sum, nil
}

// blockSize is the unit of a file's allocated blocks, whatever the file system's own.
const blockSize = 512

// isVMID reports whether name has the form of an id, so that no other
// directory is ever taken for a VM's.
func isVMID(name string) bool {
	id, ok := strings.CutPrefix(name, vm.IDPrefix)
	return ok && id != "" && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}
