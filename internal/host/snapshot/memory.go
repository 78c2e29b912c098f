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

// seals make the memory of a base immutable: no process can write to it, resize it
// or change its seals.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// loaded is the memory of a snapshot in RAM, from its first use on.
type loaded struct {
	users     int
	base      *os.File   // nil until it is loaded
	shared    vmm.Shared // an estimate until it is loaded
	ephemeral bool       // its memory is nowhere else
}

// PinMemory implements snapshot.Files.
func (f *Files) PinMemory(id string, bytes int64) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.pin(id)
	if l.base == nil {
		l.shared.Bytes = max(l.shared.Bytes, bytes)
	}
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if l.users--; l.users == 0 && f.loaded[id] == l {
			f.unload(id)
		}
	})
}

// pin adds a user of the memory. Precondition: mu is held.
func (f *Files) pin(id string) *loaded {
	l := f.loaded[id]
	if l == nil {
		l = &loaded{}
		f.loaded[id] = l
	}
	l.users++
	return l
}

// unload frees the RAM of a snapshot's memory, whether it has users or not. Open
// handles of the memory stay valid. Precondition: mu is held.
func (f *Files) unload(id string) {
	if l := f.loaded[id]; l != nil && l.base != nil {
		_ = l.base.Close() // nothing is buffered
	}
	delete(f.loaded, id)
}

// Bases implements snapshot.Files.
func (f *Files) Bases() []vmm.Shared {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []vmm.Shared
	for _, l := range f.loaded {
		all = append(all, l.shared)
	}
	return all
}

// Base implements snapshot.Files. Concurrent calls for pinned memory read it once.
func (f *Files) Base(ctx context.Context, id string) (*os.File, error) {
	base, pinned, err := f.handle(id)
	switch {
	case base != nil || err != nil:
		return base, err
	case !pinned:
		return f.read(ctx, id)
	}
	_, err, _ = f.reading.Do(id, func() (any, error) {
		base, err := f.read(ctx, id)
		if err == nil {
			err = f.load(id, base)
		}
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	if base, _, err = f.handle(id); base == nil && err == nil {
		err = fmt.Errorf("the memory of snapshot %s was dropped while it was read", id)
	}
	return base, err
}

// read copies a snapshot's memory into RAM.
func (f *Files) read(ctx context.Context, id string) (*os.File, error) {
	x, src, err := f.open(id, memory)
	if err != nil {
		return nil, refused(id, err)
	}
	defer func() { _ = src.Close() }()
	base, err := newBase(x.Size, func(dst *os.File) error { return memory.CopyChecked(ctx, dst, src, x) })
	return base, refused(id, err)
}

// load makes base the loaded memory of a snapshot. It closes base when the memory
// has no users any more, or is loaded already.
func (f *Files) load(id string, base *os.File) error {
	shared, err := vmm.SharedOf(base)
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.loaded[id]
	if err != nil || l == nil || l.base != nil {
		return errors.Join(err, base.Close())
	}
	l.base, l.shared = base, shared
	return nil
}

// newBase returns immutable memory of this size, filled by fill.
func newBase(size int64, fill func(dst *os.File) error) (*os.File, error) {
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
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// loadEphemeral loads the memory of an ephemeral snapshot, until it is removed.
func (f *Files) loadEphemeral(ctx context.Context, id string, from snapshot.Parts) error {
	src, err := openSource(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	base, err := newBase(src.size, func(dst *os.File) error { return src.copyTo(ctx, dst) })
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.pin(id).ephemeral = true
	f.mu.Unlock()
	return f.load(id, base)
}

// handle returns a handle of loaded memory, for the caller to close; nil when it
// is not loaded.
func (f *Files) handle(id string) (base *os.File, pinned bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.loaded[id]
	if l == nil || l.base == nil {
		return nil, l != nil, nil
	}
	fd, err := unix.FcntlInt(l.base.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, true, fmt.Errorf("cannot duplicate a handle of memory: %w", err)
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

// linkMemory links the checksums first: memory is valid once it has its name.
func (f *Files) linkMemory(id, dir string) error {
	names := []string{memoryIndex, memoryName}
	if err := f.present(id, names...); err != nil {
		return err
	}
	for i, name := range names {
		if err := os.Link(f.path(id, name), filepath.Join(dir, name)); err != nil {
			return errors.Join(fmt.Errorf("cannot link memory: %w", err), discard(dir, names[:i]...))
		}
	}
	return nil
}

// copyMemory is for a directory on another file system.
func (f *Files) copyMemory(id, dir string) error {
	x, src, err := f.open(id, memory)
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
