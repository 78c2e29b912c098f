//go:build linux

package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Names of files in the directory of the saved machine.
const (
	memoryName = "memory"
	indexName  = "memory.json"
)

// part is what errors call a guest's memory.
const part = sparse.Part("memory")

// Persist implements vm.Memories.
func (k *Keeper) Persist(ctx context.Context, vmID string) (bytes int64, err error) {
	bytes, err = k.persist(ctx, vmID)
	if err == nil {
		return bytes, nil
	}
	for _, name := range []string{memoryName, memoryName + fresh, indexName} {
		if failed := os.Remove(filepath.Join(k.Dir(vmID), name)); !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return 0, space.Full(err)
}

func (k *Keeper) persist(ctx context.Context, vmID string) (bytes int64, err error) {
	src, err := os.Open(k.Path(vmID))
	if err != nil {
		return 0, fmt.Errorf("cannot read the guest's memory: %w", err)
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return 0, err
	}
	path := filepath.Join(k.Dir(vmID), memoryName)
	if err := os.Remove(path + fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	dst, err := newFile(path+fresh, st.Size(), 0)
	if err != nil {
		return 0, fmt.Errorf("cannot copy the guest's memory: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	x, err := part.CopyAndSum(ctx, dst, src, st.Size())
	if err != nil {
		return 0, err
	}
	if err := dst.Sync(); err != nil {
		return 0, fmt.Errorf("cannot write the guest's memory: %w", err)
	}
	if err := k.seal(vmID, x); err != nil {
		return 0, err
	}
	return sparse.Allocated(k.Dir(vmID))
}

// seal syncs all files of the copy, then makes it valid by its name.
func (k *Keeper) seal(vmID string, x sparse.Index) error {
	dir := k.Dir(vmID)
	if err := x.Write(filepath.Join(dir, indexName)); err != nil {
		return err
	}
	for _, name := range []string{indexName, vmm.SavedDevices, vmm.SavedManifest} {
		if err := sparse.Sync(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, memoryName)
	if err := os.Rename(path+fresh, path); err != nil {
		return err
	}
	return errors.Join(sparse.Sync(dir), sparse.Sync(filepath.Dir(dir)))
}

// Recall implements vm.Memories.
func (k *Keeper) Recall(ctx context.Context, vmID string, durable bool, uid int) error {
	if !durable {
		if _, err := os.Stat(k.Path(vmID)); err != nil {
			return vmm.Unusable("its memory is gone").WithCause(err)
		}
		return nil
	}
	if err := k.Release(vmID); err != nil { // of an interrupted wake
		return err
	}
	if err := k.recall(ctx, vmID, uid); err != nil {
		return errors.Join(err, k.Release(vmID))
	}
	return os.Rename(k.Path(vmID)+fresh, k.Path(vmID))
}

// recall copies the memory from disk and checks it.
func (k *Keeper) recall(ctx context.Context, vmID string, uid int) (err error) {
	x, err := part.ReadIndex(filepath.Join(k.Dir(vmID), indexName))
	if err != nil {
		return refused(err)
	}
	src, err := part.Open(filepath.Join(k.Dir(vmID), memoryName), x)
	if err != nil {
		return refused(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := newFile(k.Path(vmID)+fresh, x.Size, uid)
	if err != nil {
		return fmt.Errorf("cannot make the guest's memory: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return refused(part.CopyChecked(ctx, dst, src, x))
}

// refused turns the error for an unusable copy into vmm's.
func refused(err error) error {
	if why := (*sparse.Unusable)(nil); errors.As(err, &why) {
		return vmm.Unusable("%s", why.Text).WithCause(err)
	}
	return err
}

// Has implements vm.Memories.
func (k *Keeper) Has(vmID string, durable bool) bool {
	memory, _ := k.Saved(vmID, durable)
	_, err := os.Stat(memory)
	return err == nil
}
