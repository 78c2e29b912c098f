//go:build linux

package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Capture implements snapshot.Files.
func (f *Files) Capture(ctx context.Context, id string, from snapshot.Parts) error {
	dir := f.Dir(id)
	err := captureDisk(ctx, dir, from.Disk)
	if err == nil {
		err = captureMemory(ctx, dir, from)
	}
	return captured(dir, err)
}

// CapturePassing implements snapshot.Files.
func (f *Files) CapturePassing(ctx context.Context, id string, from snapshot.Parts) error {
	dir := f.Dir(id)
	err := captureDisk(ctx, dir, from.Disk)
	if err == nil {
		err = f.keepPassing(ctx, id, from)
	}
	return captured(dir, err)
}

// captured leaves nothing in dir of what failed.
func captured(dir string, err error) error {
	if err == nil {
		return nil
	}
	if why := (*sparse.Unusable)(nil); errors.As(err, &why) { // there is no snapshot yet that could be
		err = vmm.Unusable("%s", why.Text).WithCause(err)
	}
	return errors.Join(full(err), discard(dir, memoryName, diskName))
}

// captureMemory leaves adding up for later: the guest stands.
func captureMemory(ctx context.Context, dir string, from snapshot.Parts) (err error) {
	src, err := openSource(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := sparse.Create(filepath.Join(dir, memoryName), src.size)
	if err != nil {
		return fmt.Errorf("cannot copy the guest's memory: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return src.copyTo(ctx, dst)
}

// source is the memory of a guest that stands. One that has checksums is copied
// as they say or not at all: those that Seal makes would bless its damage.
type source struct {
	*os.File
	size   int64
	copyTo func(ctx context.Context, dst *os.File) error
}

func openSource(from snapshot.Parts) (source, error) {
	if from.Index == "" {
		src, size, err := open(from.Memory)
		if err != nil {
			return source{}, fmt.Errorf("cannot read the guest's memory: %w", err)
		}
		return source{src, size, func(ctx context.Context, dst *os.File) error { return memory.Copy(ctx, dst, src, size) }}, nil
	}
	x, err := memory.ReadIndex(from.Index)
	if err != nil {
		return source{}, err
	}
	src, err := memory.Open(from.Memory, x)
	return source{src, x.Size, func(ctx context.Context, dst *os.File) error { return memory.CopyChecked(ctx, dst, src, x) }}, err
}

func captureDisk(ctx context.Context, dir, from string) error {
	return sparse.Duplicate(from, filepath.Join(dir, diskName), func(dst, src *os.File, size int64) error {
		return disk.Copy(ctx, dst, src, size)
	})
}

func open(path string) (f *os.File, size int64, err error) {
	if f, err = os.Open(path); err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// Seal implements snapshot.Files.
func (f *Files) Seal(ctx context.Context, id string) (sums snapshot.Sums, bytes int64, err error) {
	dir := f.Dir(id)
	err = addUp(ctx, memory, filepath.Join(dir, memoryName), filepath.Join(dir, memoryIndex))
	if err == nil {
		err = addUp(ctx, disk, filepath.Join(dir, diskName), filepath.Join(dir, diskIndex))
	}
	if err != nil {
		return snapshot.Sums{}, 0, full(err)
	}
	for _, one := range []struct {
		name string
		into *string
	}{{vmm.SavedDevices, &sums.Devices}, {memoryIndex, &sums.Memory}, {diskIndex, &sums.Disk}} {
		if *one.into, err = digest(filepath.Join(dir, one.name)); err != nil {
			return snapshot.Sums{}, 0, fmt.Errorf("cannot add up a snapshot: %w", err)
		}
	}
	if err := f.sync(dir); err != nil {
		return snapshot.Sums{}, 0, fmt.Errorf("cannot write a snapshot: %w", full(err))
	}
	bytes, err = sparse.Allocated(dir)
	return sums, bytes, err
}

// addUp writes the checksums of a part.
func addUp(ctx context.Context, part sparse.Part, path, index string) error {
	src, size, err := open(path)
	if err != nil {
		return fmt.Errorf("cannot add up %s: %w", part, err)
	}
	defer func() { _ = src.Close() }()
	x, err := part.Sum(ctx, src, size)
	if err != nil {
		return err
	}
	return x.Write(index)
}

// sync makes a snapshot safe from a power cut.
func (f *Files) sync(dir string) error {
	for _, name := range []string{memoryName, memoryIndex, diskName, diskIndex, vmm.SavedDevices, vmm.SavedManifest, "."} {
		if err := sparse.Sync(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return sparse.Sync(f.root)
}

// digest returns the sum of a file's content, as snapshot.Sums has it.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
