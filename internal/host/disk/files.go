// Package disk makes the files of each VM in a directory of its own: its disk, and
// the NoCloud disk that seeds cloud-init.
//
// It makes sparse files from templates; it does not format per VM, mount anything
// or change an image. docs/reference/data-directory.md describes the directory.
// Start at [Files].
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
	"time"

	"github.com/hatchvm/hatch/internal/disk"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
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

// part is what errors call a VM's disk.
const part = sparse.Part("disk")

// Files are the VMs' directories below one root.
type Files struct {
	root      string
	templates string // directory of empty file systems

	mu     sync.Mutex
	making map[int]*sync.Mutex // by the template's size
}

// New returns the files below root. templates is a directory for empty file
// systems, on the same file system as root.
func New(root, templates string) *Files {
	return &Files{root: root, templates: templates, making: map[int]*sync.Mutex{}}
}

// Dir returns the VM's directory, whether it exists or not.
func (f *Files) Dir(vmID string) string { return filepath.Join(f.root, vmID) }

// Disk returns the path of the VM's own disk, whether it exists or not.
func (f *Files) Disk(vmID string) string { return filepath.Join(f.Dir(vmID), diskName) }

// Provision makes the VM's directory with its disk and seed. On error nothing is
// left. Errors: errs.Invalid with field disk_mib; errs.Exhausted when the host's
// disk is full.
func (f *Files) Provision(ctx context.Context, v vm.VM) error {
	return f.ProvisionFrom(ctx, v, func(ctx context.Context, to string) error {
		if v.Boot.DiskMode == image.DiskCopy { // a private copy of the image's root, as large as the VM's disk
			size := int64(v.DiskMiB) << 20
			if size < v.Boot.Rootfs.Size {
				return errs.InvalidField("disk_mib", "%d is too small; the image's root file system has %d MiB", v.DiskMiB, v.Boot.Rootfs.Size>>20)
			}
			if err := f.copyRoot(ctx, v.Boot.Rootfs.Path, to); err != nil {
				return err
			}
			return os.Truncate(to, size)
		}
		from, err := f.template(ctx, v.DiskMiB)
		if err != nil {
			return err
		}
		return part.Duplicate(ctx, from, to)
	})
}

// reserveBytes is the space that the copy of an image's root leaves free on the host's
// disk.
const reserveBytes = 512 << 20

// copyRoot copies an image's root to a VM's disk. Unless blocks can be shared, it
// checks first that there is room for all of it.
func (f *Files) copyRoot(ctx context.Context, from, to string) error {
	return part.DuplicateWith(from, to, func(dst, src *os.File, size int64) error {
		st, err := src.Stat()
		if err != nil {
			return fmt.Errorf("cannot read the image: %w", err)
		}
		if err := space.Require(f.root, "a copy of the image's root file system", space.Taken(st), reserveBytes); err != nil {
			return err
		}
		return part.Copy(ctx, dst, src, size)
	})
}

// ProvisionFrom is Provision with a disk that fill makes at a path.
func (f *Files) ProvisionFrom(ctx context.Context, v vm.VM, fill func(ctx context.Context, path string) error) error {
	dir := f.Dir(v.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the VM's directory: %w", space.Full(err))
	}
	err := fill(ctx, f.Disk(v.ID))
	if err == nil {
		err = f.Seed(ctx, v)
	}
	if err == nil {
		err = f.Sync(ctx, v.ID)
	}
	if err != nil {
		return errors.Join(space.Full(err), os.RemoveAll(dir))
	}
	return nil
}

// Sync makes the VM's disk, its seed and their names durable. When ctx ends first, the
// kernel goes on writing, and Sync returns. Errors: errs.Exhausted when the host's disk
// is full.
func (f *Files) Sync(ctx context.Context, vmID string) error {
	done := make(chan error, 1)
	go func() { done <- f.sync(vmID) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Files) sync(vmID string) error {
	dir := f.Dir(vmID)
	for _, path := range []string{f.Disk(vmID), filepath.Join(dir, seedName), dir, f.root} {
		if err := sparse.Sync(path); err != nil {
			return fmt.Errorf("cannot write the VM's disk: %w", space.Full(err))
		}
	}
	return nil
}

// Disks returns the VM's disks in the order the guest sees them; own is the file
// of its own one. Errors: errs.Conflict with code disk_missing.
func (f *Files) Disks(v vm.VM, own string) ([]vmm.Disk, error) {
	if _, err := os.Stat(own); err != nil {
		return nil, errs.New(errs.Conflict, "disk_missing", "the disk of VM %s is gone", v.ID).
			WithHint("put it back into the data directory, or delete the VM").WithCause(err)
	}
	paths := map[disk.Kind]string{
		disk.Image: v.Boot.Rootfs.Path, disk.Own: own, disk.Seed: filepath.Join(f.Dir(v.ID), seedName),
	}
	var disks []vmm.Disk
	for _, d := range v.Disks() {
		disks = append(disks, vmm.Disk{Serial: d.Serial, Path: paths[d.Kind], ReadOnly: d.ReadOnly})
	}
	return disks, nil
}

// Remove deletes the VM's directory. A missing one is no error.
func (f *Files) Remove(vmID string) error {
	if !isVMID(vmID) {
		return fmt.Errorf("cannot remove the files of %q: not a VM id", vmID)
	}
	if err := os.RemoveAll(f.Dir(vmID)); err != nil {
		return fmt.Errorf("cannot remove the VM's directory: %w", err)
	}
	return nil
}

// SetAside moves the VM's directory to lost/ beside the root, under a name with
// the time. A missing one is no error.
func (f *Files) SetAside(vmID string) error {
	if !isVMID(vmID) {
		return fmt.Errorf("cannot set the files of %q aside: not a VM id", vmID)
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

// Orphans lists the VM ids that have a directory and are not among known.
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

// Allocated returns the disk space of the VM's files, in bytes. Holes take none;
// blocks that files share, as after a reflink, count for each of them.
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
		sum += space.Taken(info)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("cannot read the size of the VM's files: %w", err)
	}
	return sum, nil
}

// isVMID reports whether name has the form of a VM id. Other directories are never
// a VM's.
func isVMID(name string) bool {
	id, ok := strings.CutPrefix(name, vm.IDPrefix)
	return ok && id != "" && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}
