package fake

import (
	"context"
	"errors"
	"os"

	"github.com/hatchvm/hatch/internal/host/disk"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ vm.Files = (*Files)(nil)

// Files keeps VMs' directories as the host does, but a disk is a few bytes and
// there is no seed. Calls: Provision, Stage, CommitStaged, Seed, Disks, Remove.
type Files struct {
	*disk.Files
	Calls *Calls
}

// BlankDisk is the content of a new VM's disk.
const BlankDisk = "fake disk\n"

// NewFiles returns files below root, which need not exist.
func NewFiles(root string, calls *Calls) *Files {
	return &Files{Files: disk.New(root, ""), Calls: calls}
}

// Provision implements vm.Files.
func (f *Files) Provision(ctx context.Context, v vm.VM) error {
	return f.ProvisionFrom(ctx, v, func(_ context.Context, path string) error {
		return os.WriteFile(path, []byte(BlankDisk), 0o600)
	})
}

// ProvisionFrom implements vm.Files.
func (f *Files) ProvisionFrom(ctx context.Context, v vm.VM, fill func(ctx context.Context, path string) error) error {
	if err := os.MkdirAll(f.Dir(v.ID), 0o700); err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, f.Disk(v.ID)), f.Calls.Begin("Provision")); err != nil {
		return errors.Join(err, f.Files.Remove(v.ID))
	}
	return nil
}

// Stage implements vm.Files.
func (f *Files) Stage(ctx context.Context, vmID string, fill func(diskPath, saved string) error) error {
	return f.Files.Stage(ctx, vmID, func(diskPath, saved string) error {
		return errors.Join(fill(diskPath, saved), f.Calls.Begin("Stage"))
	})
}

// CommitStaged implements vm.Files.
func (f *Files) CommitStaged(vmID string, replace func(vmID, saved string) error) error {
	if err := f.Calls.Begin("CommitStaged"); err != nil {
		return err
	}
	return f.Files.CommitStaged(vmID, replace)
}

// Sync implements vm.Files.
func (f *Files) Sync(context.Context, string) error { return f.Calls.Begin("Sync") }

// Seed implements vm.Files.
func (f *Files) Seed(context.Context, vm.VM) error { return f.Calls.Begin("Seed") }

// Disks implements vm.Files.
func (f *Files) Disks(v vm.VM, own string) ([]vmm.Disk, error) {
	if _, err := f.Files.Disks(v, own); err != nil {
		return nil, err
	}
	return []vmm.Disk{{Serial: "hatch-disk", Path: own}}, f.Calls.Begin("Disks")
}

// Remove implements vm.Files.
func (f *Files) Remove(vmID string) error {
	if err := f.Calls.Begin("Remove"); err != nil {
		return err
	}
	return f.Files.Remove(vmID)
}
