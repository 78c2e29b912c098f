package vmm

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// newMachine returns a spec with one disk, and a directory that holds its devices.
func newMachine(t *testing.T) (Spec, string) {
	t.Helper()
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, path := range []string{disk, filepath.Join(dir, SavedDevices)} {
		if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Spec{
		VCPUs: 1, MemMiB: 64, NIC: &NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		Disks: []Disk{{Serial: "own", Path: disk}}, Origin: map[string]string{"kernel": "sha256:k"},
	}, dir
}

func TestManifestIsWrittenAndRead(t *testing.T) {
	spec, dir := newMachine(t)
	s, err := NewSaved(spec, dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Driver, s.Version, s.Accel, s.CPU = "d", "1", "a", "c"
	if err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSaved(dir)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("got %+v, %v; want %+v", got, err, s)
	}
	if err := got.Check(Saved{Driver: "d", Version: "1", Accel: "a", CPU: "c"}, spec, dir); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left %v, %v", entries, err)
	}
}

// The guest has part of its disk in its cache, so it must not wake with a disk that
// was written to after the save.
func TestADiskThatWasWrittenToIsRefused(t *testing.T) {
	spec, dir := newMachine(t)
	s, err := NewSaved(spec, dir)
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(spec.Disks[0].Path, later, later); err != nil {
		t.Fatal(err)
	}
	err = s.Check(Saved{}, spec, dir)
	if !errs.HasCode(err, "saved_unusable") || !strings.Contains(err.Error(), "own was changed") {
		t.Errorf("got %v", err)
	}
}

func TestAnotherVersionIsNamed(t *testing.T) {
	s := Saved{Driver: "firecracker", Version: "1.16.1"}
	if err := s.CheckVersion("1.16.1"); err != nil {
		t.Error(err)
	}
	err := s.Check(Saved{Driver: "firecracker", Version: "1.16.2"}, Spec{}, t.TempDir())
	e, ok := errors.AsType[*errs.Error](err)
	if !ok || e.Kind != errs.Conflict || e.Code != "saved_unusable" || !strings.Contains(e.Message, "it needs version 1.16.1 of firecracker, and 1.16.2 is installed") {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(e.Hint, "install firecracker 1.16.1 again") || !strings.Contains(e.Hint, "start the VM") {
		t.Errorf("the hint is %q", e.Hint)
	}
	if got := NeedsVersion("firecracker", "1.16.1", ""); !strings.Contains(got, "1.16.1 of firecracker, which cannot be used") {
		t.Errorf("without one installed: %q", got)
	}
	if err := s.Check(Saved{Driver: "qemu", Version: "7.2.19"}, Spec{}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "the driver was") {
		t.Errorf("on another driver: %v", err)
	}
}

func FuzzParseSaved(f *testing.F) {
	text, err := json.Marshal(Saved{Format: SavedFormat, Disks: []SavedDisk{{Serial: "s"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format": 2}`))
	f.Add([]byte(`{"format": 1, "unknown": true}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseSaved(text)
		if err != nil && !errs.HasCode(err, "saved_unusable") {
			t.Errorf("the error is %v, want saved_unusable", err)
		}
		if err == nil && s.Format != SavedFormat {
			t.Errorf("read %+v", s)
		}
	})
}
