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
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// sealed are the files of a snapshot that Seal has completed, but for its manifest.
var sealed = []string{vmm.SavedManifest, vmm.SavedDevices, memoryName, memoryIndex, diskName, diskIndex}

// Present implements snapshot.Files.
func (f *Files) Present(id string) error { return refused(id, f.present(id, sealed...)) }

// Verify implements snapshot.Files.
func (f *Files) Verify(ctx context.Context, id string, sums snapshot.Sums) error {
	err := f.present(id, sealed...)
	if err == nil {
		err = f.checkSums(id, sums)
	}
	if err == nil { // what the driver will read, which no sum covers
		if _, unreadable := vmm.ReadSaved(f.Dir(id)); unreadable != nil {
			err = &sparse.Unusable{Text: "its manifest is damaged", Err: unreadable}
		}
	}
	for _, p := range []part{memory, disk} {
		if err == nil {
			err = f.check(ctx, id, p)
		}
	}
	return refused(id, err)
}

// checkSums compares the small files; the checksums of chunks are among them.
func (f *Files) checkSums(id string, sums snapshot.Sums) error {
	for _, file := range []struct{ name, want string }{
		{vmm.SavedDevices, sums.Devices}, {memoryIndex, sums.Memory}, {diskIndex, sums.Disk},
	} {
		got, err := digest(f.path(id, file.name))
		if err != nil {
			return &sparse.Unusable{Text: called[file.name].name + " cannot be read", Err: err}
		}
		if got != file.want {
			return unusable(file.name, "damaged")
		}
	}
	return nil
}

func (f *Files) check(ctx context.Context, id string, p part) error {
	x, src, err := f.open(id, p)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return p.Check(ctx, src, x)
}

// open opens a part of a sealed snapshot, to be compared with its checksums.
func (f *Files) open(id string, p part) (x sparse.Index, src *os.File, err error) {
	if err := f.present(id, p.index, p.name); err != nil {
		return sparse.Index{}, nil, err
	}
	if x, err = p.ReadIndex(f.path(id, p.index)); err != nil {
		return sparse.Index{}, nil, err
	}
	src, err = p.Open(f.path(id, p.name), x)
	return x, src, err
}

// called is what errors call the files, with the verb.
var called = map[string]struct{ name, verb string }{
	vmm.SavedManifest: {"its manifest", "is"},
	vmm.SavedDevices:  {"the state of its devices", "is"},
	memoryName:        {"its memory", "is"},
	memoryIndex:       {"the checksums of its memory", "are"},
	diskName:          {"its disk", "is"},
	diskIndex:         {"the checksums of its disk", "are"},
}

func unusable(name, how string) *sparse.Unusable {
	return &sparse.Unusable{Text: called[name].name + " " + called[name].verb + " " + how}
}

// present checks that these files exist, and have a content.
func (f *Files) present(id string, names ...string) error {
	for _, name := range names {
		st, err := os.Stat(f.path(id, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return unusable(name, "missing")
		case err != nil:
			return fmt.Errorf("cannot read a snapshot: %w", err)
		case !st.Mode().IsRegular() || st.Size() == 0:
			return unusable(name, "damaged")
		}
	}
	return nil
}

func (f *Files) path(id, name string) string { return filepath.Join(f.Dir(id), name) }

// refused turns the errors for an unusable snapshot and for a full disk into those
// for a client.
func refused(id string, err error) error {
	if why := (*sparse.Unusable)(nil); errors.As(err, &why) {
		return errs.New(errs.Conflict, "snapshot_unusable", "snapshot %s cannot be used: %s", id, why.Text).
			WithHint("delete it, and use another one").WithCause(err)
	}
	return space.Full(err)
}
