//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// unchangeable are the seals of memory that many guests begin with: nobody
// writes to it, resizes it, or takes the seals away.
const unchangeable = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Base implements snapshot.Files.
func (f *Files) Base(ctx context.Context, id string) (*os.File, error) {
	if base, ok, err := f.kept(id); ok {
		return base, err
	}
	x, src, err := f.openMemory(id)
	if err != nil {
		return nil, refused(id, err)
	}
	defer func() { _ = src.Close() }()
	base, err := sealed(x.Size, func(dst *os.File) error { return memory.CopyChecked(ctx, dst, src, x) })
	return base, refused(id, err)
}

// HoldMemory implements snapshot.Files. However many ask for it, it is read once.
func (f *Files) HoldMemory(ctx context.Context, id string) error {
	_, err, _ := f.reading.Do(id, func() (any, error) { return nil, f.holdMemory(ctx, id) })
	return err
}

func (f *Files) holdMemory(ctx context.Context, id string) error {
	base, err := f.Base(ctx, id)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[id].base != nil {
		return base.Close() // somebody else was quicker
	}
	f.held[id] = held{base: base}
	return nil
}

// DropMemory implements snapshot.Files.
func (f *Files) DropMemory(id string) error {
	if err := f.drop(id); err != nil {
		return fmt.Errorf("cannot release the memory of a snapshot: %w", err)
	}
	return nil
}

// sealed returns memory of this size as fill leaves it, which nobody can change.
func sealed(size int64, fill func(dst *os.File) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(vmm.BaseName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), vmm.BaseName)
	err = f.Truncate(size)
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unchangeable)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// keep holds the memory of a snapshot that is never sealed until drop.
func (f *Files) keep(ctx context.Context, id string, from snapshot.Parts) error {
	src, err := openSource(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	base, err := sealed(src.size, func(dst *os.File) error { return src.copyTo(ctx, dst) })
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[id] = held{base: base, passing: true}
	return nil
}

func (f *Files) isPassing(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[id].passing
}

// kept returns what keep holds, if it holds anything, for the caller to close.
func (f *Files) kept(id string) (base *os.File, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[id].base == nil {
		return nil, false, nil
	}
	fd, err := unix.FcntlInt(f.held[id].base.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, true, fmt.Errorf("cannot hand out memory: %w", err)
	}
	return os.NewFile(uintptr(fd), vmm.BaseName), true, nil
}

func (f *Files) drop(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[id].base == nil {
		return nil
	}
	err := f.held[id].base.Close()
	delete(f.held, id)
	return err
}

// LinkMemory implements snapshot.Files.
func (f *Files) LinkMemory(id, dir string) error {
	err := f.linkMemory(id, dir)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) {
		err = f.copyMemory(id, dir)
	}
	if err != nil {
		return refused(id, err)
	}
	return errors.Join(sparse.Sync(dir), sparse.Sync(filepath.Dir(dir)))
}

// linkMemory links the checksums first: memory counts once it is there.
func (f *Files) linkMemory(id, dir string) error {
	names := []string{memoryIndex, memoryName}
	if err := f.present(id, names...); err != nil {
		return err
	}
	for i, name := range names {
		if err := os.Link(f.path(id, name), filepath.Join(dir, name)); err != nil {
			return errors.Join(fmt.Errorf("cannot share memory: %w", err), discard(dir, names[:i]...))
		}
	}
	return nil
}

// copyMemory is for a directory that cannot have links.
func (f *Files) copyMemory(id, dir string) error {
	x, src, err := f.openMemory(id)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := sparse.Create(filepath.Join(dir, memoryName), x.Size)
	if err != nil {
		return fmt.Errorf("cannot copy memory: %w", err)
	}
	err = memory.CopyChecked(context.Background(), dst, src, x)
	if err == nil {
		err = x.Write(filepath.Join(dir, memoryIndex))
	}
	if err == nil {
		err = errors.Join(dst.Sync(), sparse.Sync(filepath.Join(dir, memoryIndex)))
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, discard(dir, memoryName, memoryIndex))
	}
	return nil
}

// openMemory opens the memory of a snapshot that was captured, to be checked.
func (f *Files) openMemory(id string) (x sparse.Index, src *os.File, err error) {
	if err := f.present(id, memoryIndex, memoryName); err != nil {
		return sparse.Index{}, nil, err
	}
	if x, err = memory.ReadIndex(f.path(id, memoryIndex)); err != nil {
		return sparse.Index{}, nil, err
	}
	src, err = memory.Open(f.path(id, memoryName), x)
	return x, src, err
}
