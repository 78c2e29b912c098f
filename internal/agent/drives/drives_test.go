package drives

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func sysfs(t *testing.T, serials map[string]string) string {
	t.Helper()
	sys := t.TempDir()
	for name, serial := range serials {
		dir := filepath.Join(sys, "block", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sys
}

func TestDisksAreFoundBySerial(t *testing.T) {
	sys := sysfs(t, map[string]string{"vda": "hatch-disk", "vdb": "hatch-root\n", "vdc": "hatch-seed", "sr0": ""})
	want := map[string]string{"hatch-disk": "/dev/vda", "hatch-root": "/dev/vdb", "hatch-seed": "/dev/vdc"}
	if got := BySerial(sys, "/dev", nil); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// Firecracker makes up the serials of its disks, so that only the order identifies them.
func TestDisksAreFoundByOrder(t *testing.T) {
	sys := sysfs(t, map[string]string{"vda": "654321", "vdb": "654322\n", "vdc": "", "sda": "other"})
	want := map[string]string{"hatch-disk": "/dev/vda", "hatch-seed": "/dev/vdb", "hatch-root": "/dev/vdc", "other": "/dev/sda"}
	order := Order("quiet hatch.disks=x hatch.disks=hatch-disk,hatch-seed,hatch-root\n")
	if got := BySerial(sys, "/dev", order); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if got := Order("quiet hatch.disks="); got != nil {
		t.Errorf("an empty order is %v, want nil", got)
	}
}
