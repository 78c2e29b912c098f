package vmm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// Names of the files in a directory that a machine was saved into.
const (
	SavedManifest = "manifest.json" // a Saved; written last
	SavedDevices  = "devices"       // what the driver wrote of the machine beside its memory
)

// SavedFormat is the version of Saved that this code writes and reads.
const SavedFormat = 2

// Bounds of what is read.
const (
	maxManifest = 64 << 10 // bytes
	maxDevices  = 1 << 30  // bytes; QEMU's have some 100 KiB
)

// Saved is the manifest of a saved machine: what it was, so that it is woken
// as the same or not at all. The memory is not part of it: that is a file by
// itself, and its keeper's to check.
type Saved struct {
	Format    int               `json:"format"`
	Driver    string            `json:"driver"`
	Version   string            `json:"version"` // of the VMM program
	Accel     string            `json:"accel"`
	CPU       string            `json:"cpu"` // of the host, as far as a guest may have come to rely on it
	VCPUs     int               `json:"vcpus"`
	MemMiB    int               `json:"mem_mib"`
	MAC       string            `json:"mac"` // "" without a network device
	Origin    map[string]string `json:"origin"`
	Disks     []SavedDisk       `json:"disks"`
	Devices   SavedFile         `json:"devices"`
	CreatedAt time.Time         `json:"created_at"`
}

// SavedDisk is a disk as it was when the guest stood. The guest knows what it
// has written: on a disk that was written to since, it would do harm.
type SavedDisk struct {
	Serial   string    `json:"serial"`
	ReadOnly bool      `json:"read_only"`
	Size     int64     `json:"size"` // bytes
	ModTime  time.Time `json:"mod_time"`
}

// SavedFile is a file's content.
type SavedFile struct {
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// NewSaved describes a machine of this spec, whose guest stands and whose
// devices lie in dir already. Driver, Version, Accel and CPU are the caller's
// to fill in.
func NewSaved(spec Spec, dir string) (Saved, error) {
	s := Saved{
		Format: SavedFormat, VCPUs: spec.VCPUs, MemMiB: spec.MemMiB, Origin: spec.Origin,
		MAC: spec.mac(), CreatedAt: time.Now().UTC(),
	}
	for _, d := range spec.Disks {
		disk, err := describe(d)
		if err != nil {
			return Saved{}, err
		}
		s.Disks = append(s.Disks, disk)
	}
	var err error
	s.Devices, err = digest(filepath.Join(dir, SavedDevices))
	return s, err
}

// RemoveSaved removes what was saved into dir, whole or not. Nothing there is
// no error.
func RemoveSaved(dir string) error {
	var faults []error
	for _, name := range []string{SavedDevices, SavedManifest} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// NotShared is what Machine.Save returns for a machine without Spec.Memory.
func NotShared(id string) *errs.Error {
	return errs.New(errs.Unsupported, "memory_not_shared", "the memory of %s cannot be kept: it was started without a file for it", id).
		WithHint("restart the VM")
}

func (s Spec) mac() string {
	if s.NIC == nil {
		return ""
	}
	return s.NIC.MAC.String()
}

func describe(d Disk) (SavedDisk, error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return SavedDisk{}, fmt.Errorf("cannot look at the disk %s: %w", d.Serial, err)
	}
	return SavedDisk{Serial: d.Serial, ReadOnly: d.ReadOnly, Size: st.Size(), ModTime: st.ModTime().UTC()}, nil
}

func digest(path string) (SavedFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return SavedFile{}, err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(f, maxDevices+1))
	if err != nil {
		return SavedFile{}, fmt.Errorf("cannot read what was saved: %w", err)
	}
	return SavedFile{Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// Write puts the manifest into dir, whole or not at all.
func (s Saved) Write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the manifest: %w", err)
	}
	fresh := filepath.Join(dir, SavedManifest+".new")
	if err := os.WriteFile(fresh, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write the manifest: %w", err)
	}
	if err := os.Rename(fresh, filepath.Join(dir, SavedManifest)); err != nil {
		return errors.Join(fmt.Errorf("cannot write the manifest: %w", err), os.Remove(fresh))
	}
	return nil
}

// ReadSaved reads the manifest in dir. Errors: errs.Conflict with code
// saved_unusable.
func ReadSaved(dir string) (Saved, error) {
	f, err := os.Open(filepath.Join(dir, SavedManifest))
	if errors.Is(err, fs.ErrNotExist) {
		return Saved{}, Unusable("its manifest is missing")
	}
	if err != nil {
		return Saved{}, fmt.Errorf("cannot read the manifest: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return Saved{}, fmt.Errorf("cannot read the manifest: %w", err)
	}
	return parseSaved(text)
}

func parseSaved(text []byte) (Saved, error) {
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &format); err != nil || len(text) > maxManifest {
		return Saved{}, Unusable("its manifest is damaged")
	}
	if format.Format != SavedFormat {
		return Saved{}, Unusable("it is of format %d, and this hatchd reads format %d", format.Format, SavedFormat)
	}
	var s Saved
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&s); err != nil {
		return Saved{}, Unusable("its manifest is damaged")
	}
	return s, nil
}

// Check compares a manifest with what a machine would be woken as now: host
// has Driver, Version, Accel and CPU of today. It also reads the devices in
// dir. Errors: errs.Conflict with code saved_unusable, in words for the owner.
func (s Saved) Check(host Saved, spec Spec, dir string) error {
	for _, pair := range []struct{ what, saved, now string }{
		{"the driver", s.Driver, host.Driver},
		{"the version of " + s.Driver, s.Version, host.Version},
		{"the acceleration", s.Accel, host.Accel},
		{"the host's processor", s.CPU, host.CPU},
		{"the network device's address", s.MAC, spec.mac()},
	} {
		if pair.saved != pair.now {
			return Unusable("%s was %q and is %q now", pair.what, pair.saved, pair.now)
		}
	}
	if err := s.checkSize(spec); err != nil {
		return err
	}
	if err := s.checkDisks(spec.Disks); err != nil {
		return err
	}
	return s.checkDevices(dir)
}

func (s Saved) checkDisks(disks []Disk) error {
	if !slices.EqualFunc(s.Disks, disks, func(saved SavedDisk, d Disk) bool {
		return saved.Serial == d.Serial && saved.ReadOnly == d.ReadOnly
	}) {
		return Unusable("it had other disks")
	}
	for i, d := range disks {
		now, err := describe(d)
		if err != nil {
			return Unusable("its disk %s cannot be read", d.Serial).WithCause(err)
		}
		if now.Size != s.Disks[i].Size || !now.ModTime.Equal(s.Disks[i].ModTime) {
			return Unusable("its disk %s was changed since", d.Serial)
		}
	}
	return nil
}

func (s Saved) checkDevices(dir string) error {
	now, err := digest(filepath.Join(dir, SavedDevices))
	switch {
	case err != nil:
		return Unusable("the state of its devices cannot be read").WithCause(err)
	case now.Size != s.Devices.Size:
		return Unusable("the state of its devices has %d bytes and had %d", now.Size, s.Devices.Size)
	case now != s.Devices:
		return Unusable("the state of its devices is damaged")
	}
	return nil
}

// Unusable returns the error for a saved machine that cannot be woken.
func Unusable(format string, args ...any) *errs.Error {
	return errs.New(errs.Conflict, "saved_unusable", "what was saved of the VM cannot be used: %s", fmt.Sprintf(format, args...)).
		WithHint("start the VM: it boots from its disk, and what was in its memory is lost")
}
