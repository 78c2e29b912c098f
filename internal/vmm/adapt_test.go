package vmm

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

var anyHost = Saved{Driver: "d", Version: "1", Accel: "a", CPU: "c"}

// newFork saves a machine. It returns the directory with the saved machine, and the
// spec of another one with an identical copy of the disk.
func newFork(t *testing.T) (from string, fork Spec) {
	t.Helper()
	spec, from := newMachine(t)
	s, err := NewSaved(spec, from)
	if err != nil {
		t.Fatal(err)
	}
	s.Driver, s.Version, s.Accel, s.CPU = anyHost.Driver, anyHost.Version, anyHost.Accel, anyHost.CPU
	if err := s.Write(from); err != nil {
		t.Fatal(err)
	}
	fork, _ = newMachine(t)
	fork.NIC = &NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(fork.Disks[0].Path, later, later); err != nil {
		t.Fatal(err)
	}
	return from, fork
}

func TestAdaptSavedFitsAnotherMachine(t *testing.T) {
	from, fork := newFork(t)
	s, err := ReadSaved(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(anyHost, fork, from); !errs.HasCode(err, "saved_unusable") {
		t.Errorf("check before the adaptation: %v, want saved_unusable", err)
	}
	to := t.TempDir()
	if err := AdaptSaved(from, to, fork); err != nil {
		t.Fatal(err)
	}
	own, err := ReadSaved(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Check(anyHost, fork, to); err != nil {
		t.Error(err)
	}
	if !own.CreatedAt.Equal(s.CreatedAt) || own.Devices != s.Devices {
		t.Errorf("adapted %+v to %+v: the creation time or the devices differ", s, own)
	}
	requireSameFile(t, filepath.Join(from, SavedDevices), filepath.Join(to, SavedDevices))
	// Removing one leaves the other.
	if err := RemoveSaved(to); err != nil {
		t.Fatal(err)
	}
	if again, err := ReadSaved(from); err != nil || again.MAC != s.MAC || again.checkDevices(from) != nil {
		t.Errorf("the original is %+v after the copy was removed, %v", again, err)
	}
}

func requireSameFile(t *testing.T, a, b string) {
	t.Helper()
	one, oneErr := os.Stat(a)
	other, otherErr := os.Stat(b)
	if err := errors.Join(oneErr, otherErr); err != nil || !os.SameFile(one, other) {
		t.Errorf("%s and %s are not the same file (%v)", a, b, err)
	}
}

func TestAdaptSavedRefusesAnotherShape(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, s *Spec)
		says   string
	}{
		"more CPUs":         {func(_ *testing.T, s *Spec) { s.VCPUs++ }, "CPUs was 1 and is 2"},
		"less memory":       {func(_ *testing.T, s *Spec) { s.MemMiB-- }, "memory in MiB was 64 and is 63"},
		"another kernel":    {func(_ *testing.T, s *Spec) { s.Origin = map[string]string{"kernel": "sha256:other"} }, "kernel"},
		"no network":        {func(_ *testing.T, s *Spec) { s.NIC = nil }, "network device"},
		"no disk":           {func(_ *testing.T, s *Spec) { s.Disks = nil }, "it had 1 disks and has 0"},
		"another serial":    {func(_ *testing.T, s *Spec) { s.Disks[0].Serial = "other" }, "is the disk other"},
		"a read-only disk":  {func(_ *testing.T, s *Spec) { s.Disks[0].ReadOnly = true }, "read-only: true"},
		"a disk that grew":  {func(t *testing.T, s *Spec) { resize(t, s.Disks[0].Path) }, "own (read-only: false, 4096 bytes) now"},
		"a disk is missing": {func(_ *testing.T, s *Spec) { s.Disks[0].Path += ".gone" }, "own cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			from, fork := newFork(t)
			c.change(t, &fork)
			to := t.TempDir()
			err := AdaptSaved(from, to, fork)
			if !errs.HasCode(err, "saved_unusable") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v, want one with %q", err, c.says)
			}
			requireEmptyDir(t, to)
		})
	}
}

func TestAdaptSavedNeedsDevicesAndManifest(t *testing.T) {
	from, fork := newFork(t)
	if err := os.Remove(filepath.Join(from, SavedDevices)); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if err := AdaptSaved(from, to, fork); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without devices: %v", err)
	}
	requireEmptyDir(t, to)
	if err := AdaptSaved(t.TempDir(), to, fork); !errs.HasCode(err, "saved_unusable") {
		t.Errorf("without a manifest: %v", err)
	}
	requireEmptyDir(t, to)
}

func resize(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
}

func requireEmptyDir(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}
