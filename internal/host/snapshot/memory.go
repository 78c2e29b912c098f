//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// unchangeable are the seals of memory that many guests begin with: nobody
// writes to it, resizes it, or takes the seals away.
const unchangeable = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// HoldMemory implements snapshot.Files.
func (f *Files) HoldMemory(id string, bytes int64) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hold(id)
	if h.base == nil {
		h.takes.Bytes = max(h.takes.Bytes, bytes)
	}
	return sync.OnceFunc(func() { f.letGo(id, h) })
}

// hold counts one who wants the memory in RAM. Precondition: mu is held.
func (f *Files) hold(id string) *held {
	h := f.held[id]
	if h == nil {
		h = &held{}
		f.held[id] = h
	}
	h.users++
	return h
}

func (f *Files) letGo(id string, h *held) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.users--; h.users == 0 && f.held[id] == h {
		f.dropHeld(id)
	}
}

// drop gives the RAM back, whoever wants it.
func (f *Files) drop(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropHeld(id)
}

// dropHeld is drop for whoever holds mu. What machines and others have got of it
// they keep.
func (f *Files) dropHeld(id string) {
	if h := f.held[id]; h != nil && h.base != nil {
		_ = h.base.Close() // memory has nothing to lose
	}
	delete(f.held, id)
}

// Bases implements snapshot.Files.
func (f *Files) Bases() []vmm.Shared {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []vmm.Shared
	for _, h := range f.held {
		all = append(all, h.takes)
	}
	return all
}

// Base implements snapshot.Files. However many ask for memory that is held, it
// is read once.
func (f *Files) Base(ctx context.Context, id string) (*os.File, error) {
	base, held, err := f.kept(id)
	switch {
	case base != nil || err != nil:
		return base, err
	case !held:
		return f.read(ctx, id)
	}
	_, err, _ = f.reading.Do(id, func() (any, error) {
		base, err := f.read(ctx, id)
		if err == nil {
			err = f.keep(id, base)
		}
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	if base, _, err = f.kept(id); base == nil && err == nil {
		err = fmt.Errorf("the memory of snapshot %s was dropped while it was read", id)
	}
	return base, err
}

// read brings memory into RAM.
func (f *Files) read(ctx context.Context, id string) (*os.File, error) {
	x, src, err := f.openMemory(id)
	if err != nil {
		return nil, refused(id, err)
	}
	defer func() { _ = src.Close() }()
	base, err := sealed(x.Size, func(dst *os.File) error { return memory.CopyChecked(ctx, dst, src, x) })
	return base, refused(id, err)
}

// keep has base be what is held of a snapshot. When nobody wants it any more, or
// another is there, it is closed.
func (f *Files) keep(id string, base *os.File) error {
	takes, err := vmm.SharedOf(base)
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[id]
	if err != nil || h == nil || h.base != nil {
		return errors.Join(err, base.Close())
	}
	h.base, h.takes = base, takes
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

// keepPassing holds the memory of a snapshot that is never sealed until it is
// removed.
func (f *Files) keepPassing(ctx context.Context, id string, from snapshot.Parts) error {
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
	f.hold(id).passing = true
	f.mu.Unlock()
	return f.keep(id, base)
}

func (f *Files) isPassing(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[id]
	return h != nil && h.passing
}

// kept returns what is held of a snapshot, for the caller to close: nil when it
// is not there yet.
func (f *Files) kept(id string) (base *os.File, held bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[id]
	if h == nil || h.base == nil {
		return nil, h != nil, nil
	}
	fd, err := unix.FcntlInt(h.base.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, true, fmt.Errorf("cannot hand out memory: %w", err)
	}
	return os.NewFile(uintptr(fd), vmm.BaseName), true, nil
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
