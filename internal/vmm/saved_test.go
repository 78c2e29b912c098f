package vmm

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// newMachine returns a spec with one disk, and a directory it is saved into.
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

func TestWhatIsSavedIsReadAgain(t *testing.T) {
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

// The guest has parts of its disk in its memory: a disk that somebody wrote to
// meanwhile must not be given back to it.
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
			t.Errorf("another error: %v", err)
		}
		if err == nil && s.Format != SavedFormat {
			t.Errorf("read %+v", s)
		}
	})
}
