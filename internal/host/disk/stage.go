package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
)

// The staging directory in a VM's directory, for a restore, and the directory of
// the saved machine in it, beside a disk.
const (
	stageName      = "restore"
	stageSavedName = "saved"
)

// Stage makes the staging directory, lets fill make a disk and fill the directory of
// a saved machine, and syncs both. On error nothing is left.
// Errors: errs.Exhausted when the host's disk is full.
func (f *Files) Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	if err := f.Unstage(vmID); err != nil {
		return err
	}
	err := f.stage(ctx, vmID, fill)
	if err != nil {
		return errors.Join(space.Full(err), f.Unstage(vmID))
	}
	return nil
}

func (f *Files) stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	stage := filepath.Join(f.Dir(vmID), stageName)
	saved := filepath.Join(stage, stageSavedName)
	if err := os.MkdirAll(saved, 0o700); err != nil {
		return fmt.Errorf("cannot make the staging directory: %w", err)
	}
	if err := fill(filepath.Join(stage, diskName), saved); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := filepath.WalkDir(stage, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return sparse.Sync(path)
	})
	return errors.Join(err, sparse.Sync(filepath.Dir(stage)))
}

// CommitStaged moves the staged disk over the VM's, and with replace the saved
// machine. It may be called again after it was interrupted.
func (f *Files) CommitStaged(vmID string, replace func(vmID, saved string) error) error {
	stage := filepath.Join(f.Dir(vmID), stageName)
	if err := ignoreMissing(os.Rename(filepath.Join(stage, diskName), f.Disk(vmID))); err != nil {
		return fmt.Errorf("cannot move the staged disk: %w", err)
	}
	saved := filepath.Join(stage, stageSavedName)
	if _, err := os.Stat(saved); err == nil {
		if err := replace(vmID, saved); err != nil {
			return err
		}
	}
	if err := sparse.Sync(f.Dir(vmID)); err != nil {
		return err
	}
	return f.Unstage(vmID)
}

// Unstage removes the staging directory. A missing one is no error.
func (f *Files) Unstage(vmID string) error {
	if err := os.RemoveAll(filepath.Join(f.Dir(vmID), stageName)); err != nil {
		return fmt.Errorf("cannot remove the staging directory: %w", err)
	}
	return nil
}
