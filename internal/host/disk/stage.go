package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

// Names in a VM's directory of what is about to take the place of what it has.
const (
	stageName      = "restore"
	stageSavedName = "saved" // within it, beside a disk
)

// Stage makes a place for a disk and for what was saved of a machine, lets fill
// fill it, and makes both safe from a power cut. On error nothing is left.
// Errors: errs.Exhausted when the host's disk is full.
func (f *Files) Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	if err := f.Unstage(vmID); err != nil {
		return err
	}
	err := f.stage(ctx, vmID, fill)
	if err != nil {
		return errors.Join(full(err), f.Unstage(vmID))
	}
	return nil
}

func (f *Files) stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	stage := filepath.Join(f.Dir(vmID), stageName)
	saved := filepath.Join(stage, stageSavedName)
	if err := os.MkdirAll(saved, 0o700); err != nil {
		return fmt.Errorf("cannot make a place beside the VM's files: %w", err)
	}
	if err := fill(filepath.Join(stage, diskName), saved); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return syncAll(stage)
}

// syncAll makes all below dir safe from a power cut, and that dir is there.
func syncAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return sparse.Sync(path)
	})
	return errors.Join(err, sparse.Sync(filepath.Dir(dir)))
}

// Settle moves what was staged to where the VM has it: the disk, and by takeIn
// what was saved. It may be called again when it was cut short.
func (f *Files) Settle(vmID string, takeIn func(vmID, saved string) error) error {
	stage := filepath.Join(f.Dir(vmID), stageName)
	if err := ignoreMissing(os.Rename(filepath.Join(stage, diskName), f.Disk(vmID))); err != nil {
		return fmt.Errorf("cannot put the disk of a snapshot in its place: %w", err)
	}
	saved := filepath.Join(stage, stageSavedName)
	if _, err := os.Stat(saved); err == nil {
		if err := takeIn(vmID, saved); err != nil {
			return err
		}
	}
	if err := sparse.Sync(f.Dir(vmID)); err != nil {
		return err
	}
	return f.Unstage(vmID)
}

// Unstage removes what was staged. Nothing there is no error.
func (f *Files) Unstage(vmID string) error {
	if err := os.RemoveAll(filepath.Join(f.Dir(vmID), stageName)); err != nil {
		return fmt.Errorf("cannot remove what was laid out of a snapshot: %w", err)
	}
	return nil
}
