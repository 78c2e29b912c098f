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
	SavedDevices  = "devices"       // the state of the machine's devices, in the driver's format
)

// SavedFormat is the version of Saved that this code writes and reads.
const SavedFormat = 2

// Limits of the files that are read.
const (
	maxManifest = 64 << 10 // bytes
	maxDevices  = 1 << 30  // bytes; QEMU writes some 100 KiB
)

// Saved is the manifest of a saved machine: its properties, which must be the
// same when it is woken. The memory is a separate file, which the caller checks.
type Saved struct {
	Format    int               `json:"format"`
	Driver    string            `json:"driver"`
	Version   string            `json:"version"` // of the VMM program
	Accel     string            `json:"accel"`
	CPU       string            `json:"cpu"` // Info.CPU
	VCPUs     int               `json:"vcpus"`
	MemMiB    int               `json:"mem_mib"`
	MAC       string            `json:"mac"` // "" without a network device
	Origin    map[string]string `json:"origin"`
	Disks     []SavedDisk       `json:"disks"`
	Devices   SavedFile         `json:"devices"`
	CreatedAt time.Time         `json:"created_at"`
}

// SavedDisk is a disk at the moment of the save. The guest has part of the disk in
// its cache: if the disk was written to after the save, the guest would corrupt it.
type SavedDisk struct {
	Serial   string    `json:"serial"`
	ReadOnly bool      `json:"read_only"`
	Size     int64     `json:"size"` // bytes
	ModTime  time.Time `json:"mod_time"`
}

// SavedFile identifies the content of a file.
type SavedFile struct {
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// NewSaved returns the manifest of a paused machine of this spec, whose devices
// are in dir already. The caller sets Driver, Version, Accel and CPU.
func NewSaved(spec Spec, dir string) (Saved, error) {
	s := Saved{
		Format: SavedFormat, VCPUs: spec.VCPUs, MemMiB: spec.MemMiB, Origin: spec.Origin,
		MAC: spec.mac(), CreatedAt: time.Now().UTC(),
	}
	for _, d := range spec.Disks {
		disk, err := statDisk(d)
		if err != nil {
			return Saved{}, err
		}
		s.Disks = append(s.Disks, disk)
	}
	var err error
	s.Devices, err = digestDevices(dir)
	return s, err
}

// RemoveSaved removes a saved machine from dir, complete or not. It is no error
// if there is none.
func RemoveSaved(dir string) error {
	var failures []error
	for _, name := range []string{SavedDevices, SavedManifest} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// NotShared returns the error of Machine.Save for a machine without Spec.Memory.
func NotShared(id string) *errs.Error {
	return errs.New(errs.Unsupported, "memory_not_shared", "the memory of %s cannot be saved: it was started without a file for it", id).
		WithHint("restart the VM")
}

func (s Spec) mac() string {
	if s.NIC == nil {
		return ""
	}
	return s.NIC.MAC.String()
}

func statDisk(d Disk) (SavedDisk, error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return SavedDisk{}, fmt.Errorf("cannot stat the disk %s: %w", d.Serial, err)
	}
	return SavedDisk{Serial: d.Serial, ReadOnly: d.ReadOnly, Size: st.Size(), ModTime: st.ModTime().UTC()}, nil
}

func digestDevices(dir string) (SavedFile, error) {
	f, err := os.Open(filepath.Join(dir, SavedDevices))
	if err != nil {
		return SavedFile{}, err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(f, maxDevices+1))
	if err != nil {
		return SavedFile{}, fmt.Errorf("cannot read the saved devices: %w", err)
	}
	return SavedFile{Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// Write writes the manifest into dir, atomically.
func (s Saved) Write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the manifest: %w", err)
	}
	tmp := filepath.Join(dir, SavedManifest+".new")
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write the manifest: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, SavedManifest)); err != nil {
		return errors.Join(fmt.Errorf("cannot write the manifest: %w", err), os.Remove(tmp))
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

// Check returns an error if the machine cannot be woken as spec on host, of which it
// uses Driver, Version, Accel and CPU. It also verifies the devices in dir. Errors:
// errs.Conflict with code saved_unusable and a text for the owner.
func (s Saved) Check(host Saved, spec Spec, dir string) error {
	if s.Driver == host.Driver {
		if err := s.CheckVersion(host.Version); err != nil {
			return err
		}
	}
	for _, pair := range []struct{ what, saved, now string }{
		{"the driver", s.Driver, host.Driver},
		{"the acceleration", s.Accel, host.Accel},
		{"the host's processor", s.CPU, host.CPU},
		{"the network device's address", s.MAC, spec.mac()},
	} {
		if pair.saved != pair.now {
			return Unusable("%s was %q and is %q now", pair.what, pair.saved, pair.now)
		}
	}
	if err := s.checkShape(spec); err != nil {
		return err
	}
	if err := s.checkDisks(spec.Disks); err != nil {
		return err
	}
	return s.checkDevices(dir)
}

// CheckVersion returns an error if another version of the VMM is installed than the one
// that saved the machine. VMMs change the format of what they save also in their
// smallest releases, as Firecracker 1.16.2 did. Errors: errs.Conflict with code
// saved_unusable.
func (s Saved) CheckVersion(installed string) error {
	if s.Version == installed {
		return nil
	}
	return Unusable("%s", NeedsVersion(s.Driver, s.Version, installed)).
		WithHint("install %s %s again; or start the VM: it boots from its disk, and the content of its memory is lost", s.Driver, s.Version)
}

// NeedsVersion says which version of a driver's VMM a saved machine needs, and which
// one is installed; "" means none.
func NeedsVersion(driver, needs, installed string) string {
	if installed == "" {
		return fmt.Sprintf("it needs version %s of %s, which cannot be used on this host", needs, driver)
	}
	return fmt.Sprintf("it needs version %s of %s, and %s is installed", needs, driver, installed)
}

func (s Saved) checkDisks(disks []Disk) error {
	if !slices.EqualFunc(s.Disks, disks, func(saved SavedDisk, d Disk) bool {
		return saved.Serial == d.Serial && saved.ReadOnly == d.ReadOnly
	}) {
		return Unusable("it was saved with other disks")
	}
	for i, d := range disks {
		now, err := statDisk(d)
		if err != nil {
			return Unusable("its disk %s cannot be read", d.Serial).WithCause(err)
		}
		if now.Size != s.Disks[i].Size || !now.ModTime.Equal(s.Disks[i].ModTime) {
			return Unusable("its disk %s was changed after the save", d.Serial)
		}
	}
	return nil
}

func (s Saved) checkDevices(dir string) error {
	now, err := digestDevices(dir)
	switch {
	case err != nil:
		return Unusable("the state of its devices cannot be read").WithCause(err)
	case now.Size != s.Devices.Size:
		return Unusable("the state of its devices has %d bytes instead of %d", now.Size, s.Devices.Size)
	case now != s.Devices:
		return Unusable("the state of its devices is damaged")
	}
	return nil
}

// Unusable returns the error for a saved machine that cannot be woken.
func Unusable(format string, args ...any) *errs.Error {
	return errs.New(errs.Conflict, "saved_unusable", "the saved state of the VM cannot be used: %s", fmt.Sprintf(format, args...)).
		WithHint("start the VM: it boots from its disk, and the content of its memory is lost")
}
