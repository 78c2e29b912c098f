//go:build linux

package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// manifestName is the file of snapshot.Manifest; that of vmm.SavedManifest is the
// machine's.
const manifestName = "snapshot.json"

// Describe implements snapshot.Files.
func (f *Files) Describe(snap snapshot.Snapshot) error {
	if f.describes(snap) {
		return nil
	}
	err := f.present(snap.ID, sealed...)
	if err == nil {
		err = f.checkSums(snap.ID, snap.Sums)
	}
	if err != nil {
		return refused(snap.ID, err)
	}
	parts, err := f.parts(snap.ID)
	if err == nil {
		err = f.writeManifest(snap, parts)
	}
	return refused(snap.ID, err)
}

// describes reports whether the snapshot has a manifest with its values.
func (f *Files) describes(snap snapshot.Snapshot) bool {
	file, err := os.Open(f.path(snap.ID, manifestName))
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, snapshot.MaxManifest+1))
	if err != nil {
		return false
	}
	m, err := snapshot.ParseManifest(text)
	if err != nil || sumsOf(m.Parts) != snap.Sums {
		return false
	}
	want, err := snapshot.ManifestOf(snap, m.Parts).Encode()
	return err == nil && bytes.Equal(text, want)
}

// parts lists the files of a snapshot. The large ones are described by their
// checksums' files.
func (f *Files) parts(id string) ([]snapshot.Part, error) {
	var all []snapshot.Part
	for _, name := range []string{vmm.SavedManifest, vmm.SavedDevices, memoryIndex, diskIndex} {
		st, err := os.Stat(f.path(id, name))
		if err != nil {
			return nil, fmt.Errorf("cannot read a snapshot: %w", err)
		}
		sum, err := digest(f.path(id, name))
		if err != nil {
			return nil, fmt.Errorf("cannot make a snapshot's checksums: %w", err)
		}
		all = append(all, snapshot.Part{Name: name, Size: st.Size(), Sum: sum})
	}
	for _, p := range []part{memory, disk} {
		x, err := p.ReadIndex(f.path(id, p.index))
		if err != nil {
			return nil, err
		}
		all = append(all, snapshot.Part{Name: p.name, Size: x.Size})
	}
	return all, nil
}

func sumsOf(parts []snapshot.Part) (sums snapshot.Sums) {
	for _, p := range parts {
		switch p.Name {
		case vmm.SavedDevices:
			sums.Devices = p.Sum
		case memoryIndex:
			sums.Memory = p.Sum
		case diskIndex:
			sums.Disk = p.Sum
		}
	}
	return sums
}

// writeManifest writes the manifest, or replaces it, and makes it durable. It is
// for its user alone: user data may contain secrets.
func (f *Files) writeManifest(snap snapshot.Snapshot, parts []snapshot.Part) error {
	text, err := snapshot.ManifestOf(snap, parts).Encode()
	if err != nil {
		return err
	}
	path := f.path(snap.ID, manifestName)
	err = os.WriteFile(path+".new", text, 0o600)
	if err == nil {
		err = sparse.Sync(path + ".new")
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot write a snapshot's manifest: %w", space.Full(err)), discard(f.Dir(snap.ID), manifestName+".new"))
	}
	return sparse.Sync(f.Dir(snap.ID))
}
