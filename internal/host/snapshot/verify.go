//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Verify implements snapshot.Files.
func (f *Files) Verify(ctx context.Context, id string, sums snapshot.Sums) error {
	err := f.present(id, vmm.SavedManifest, vmm.SavedDevices, memoryName, memoryIndex, diskName, diskIndex)
	if err == nil {
		err = f.checkSums(id, sums)
	}
	if err == nil {
		err = f.checkManifest(id)
	}
	if err == nil {
		err = f.checkMemory(ctx, id)
	}
	if err == nil {
		err = f.checkDisk(ctx, id)
	}
	return refused(id, err)
}

// checkSums compares the small files: with them, those of chunks are the right ones.
func (f *Files) checkSums(id string, sums snapshot.Sums) error {
	for _, one := range []struct{ name, want string }{
		{vmm.SavedDevices, sums.Devices}, {memoryIndex, sums.Memory}, {diskIndex, sums.Disk},
	} {
		got, err := digest(f.path(id, one.name))
		if err != nil {
			return &sparse.Unusable{Text: words[one.name].name + " cannot be read", Err: err}
		}
		if got != one.want {
			return is(one.name, "damaged")
		}
	}
	return nil
}

// checkManifest reads what the driver will read: the sums do not cover it.
func (f *Files) checkManifest(id string) error {
	if _, err := vmm.ReadSaved(f.Dir(id)); err != nil {
		return &sparse.Unusable{Text: "its manifest is damaged", Err: err}
	}
	return nil
}

func (f *Files) checkMemory(ctx context.Context, id string) error {
	x, src, err := f.openMemory(id)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return memory.Check(ctx, src, x)
}

func (f *Files) checkDisk(ctx context.Context, id string) error {
	x, src, err := f.openDisk(id)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return disk.Check(ctx, src, x)
}

// words are what errors call the files, with the verb that goes with them.
var words = map[string]struct{ name, is string }{
	vmm.SavedManifest: {"its manifest", "is"},
	vmm.SavedDevices:  {"the state of its devices", "is"},
	memoryName:        {"its memory", "is"},
	memoryIndex:       {"the checksums of its memory", "are"},
	diskName:          {"its disk", "is"},
	diskIndex:         {"the checksums of its disk", "are"},
}

func is(name, how string) *sparse.Unusable {
	return &sparse.Unusable{Text: words[name].name + " " + words[name].is + " " + how}
}

// present finds out which of these files is missing.
func (f *Files) present(id string, names ...string) error {
	for _, name := range names {
		if _, err := os.Stat(f.path(id, name)); errors.Is(err, fs.ErrNotExist) {
			return is(name, "missing")
		} else if err != nil {
			return fmt.Errorf("cannot look at a snapshot: %w", err)
		}
	}
	return nil
}

func (f *Files) path(id, name string) string { return filepath.Join(f.Dir(id), name) }

// refused turns what is wrong with a snapshot, or with the host's disk, into
// words for whoever asked.
func refused(id string, err error) error {
	if why := (*sparse.Unusable)(nil); errors.As(err, &why) {
		return errs.New(errs.Conflict, "snapshot_unusable", "snapshot %s cannot be used: %s", id, why.Text).
			WithHint("delete it, and use another one").WithCause(err)
	}
	return full(err)
}
