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

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Capture implements snapshot.Files.
func (f *Files) Capture(ctx context.Context, id string, from snapshot.Parts) error {
	dir := f.Dir(id)
	err := disk.Duplicate(ctx, from.Disk, filepath.Join(dir, diskName))
	if err == nil {
		err = captureMemory(ctx, dir, from)
	}
	return captured(dir, err)
}

// CaptureEphemeral implements snapshot.Files.
func (f *Files) CaptureEphemeral(ctx context.Context, id string, from snapshot.Parts) error {
	dir := f.Dir(id)
	err := disk.Duplicate(ctx, from.Disk, filepath.Join(dir, diskName))
	if err == nil {
		err = f.loadEphemeral(ctx, id, from)
	}
	return captured(dir, err)
}

// captured removes the files of a failed capture from dir.
func captured(dir string, err error) error {
	if err == nil {
		return nil
	}
	if why := (*sparse.Unusable)(nil); errors.As(err, &why) { // about the VM: there is no snapshot yet
		err = vmm.Unusable("%s", why.Text).WithCause(err)
	}
	return errors.Join(space.Full(err), discard(dir, memoryName, diskName))
}

// captureMemory makes no checksums, which take long: the guest is paused.
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

// source is the memory of a paused guest. Memory with checksums is compared with
// them: Seal would make valid checksums of damaged memory.
type source struct {
	*os.File
	size   int64
	copyTo func(ctx context.Context, dst *os.File) error
}

func openSource(from snapshot.Parts) (source, error) {
	if from.Index == "" {
		src, size, err := openFile(from.Memory)
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

func openFile(path string) (f *os.File, size int64, err error) {
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
func (f *Files) Seal(ctx context.Context, snap snapshot.Snapshot) (sums snapshot.Sums, bytes int64, err error) {
	dir := f.Dir(snap.ID)
	for _, p := range []part{memory, disk} {
		if err := sum(ctx, p, filepath.Join(dir, p.name), filepath.Join(dir, p.index)); err != nil {
			return snapshot.Sums{}, 0, space.Full(err)
		}
	}
	parts, err := f.parts(snap.ID)
	if err == nil {
		err = f.writeManifest(snap, parts)
	}
	if err != nil {
		return snapshot.Sums{}, 0, err
	}
	if err := f.sync(dir); err != nil {
		return snapshot.Sums{}, 0, fmt.Errorf("cannot write a snapshot: %w", space.Full(err))
	}
	bytes, err = sparse.Allocated(dir)
	return sumsOf(parts), bytes, err
}

// sum writes the checksums of a part.
func sum(ctx context.Context, p part, path, index string) error {
	src, size, err := openFile(path)
	if err != nil {
		return fmt.Errorf("cannot read the %s: %w", p.Part, err)
	}
	defer func() { _ = src.Close() }()
	x, err := p.Sum(ctx, src, size)
	if err != nil {
		return err
	}
	return x.Write(index)
}

// sync makes a snapshot's files durable.
func (f *Files) sync(dir string) error {
	for _, name := range []string{memoryName, memoryIndex, diskName, diskIndex, vmm.SavedDevices, vmm.SavedManifest, "."} {
		if err := sparse.Sync(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return sparse.Sync(f.root)
}

// digest returns the digest of a file's content in the form of snapshot.Sums.
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
