//go:build system

package initramfs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestRealKernelHasAllDrivers packs the modules of the kernel that tests boot.
func TestRealKernelHasAllDrivers(t *testing.T) {
	dir := os.Getenv("HATCH_TEST_MODULES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", ".cache", "test", "modules")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("modules are missing (%v); fetch them with: make test-assets", err)
	}
	for _, format := range []string{"ext4", "squashfs", "erofs", "xfs", "btrfs"} {
		s := source(t)
		s.ModulesDir, s.RootfsFormat = dir, format
		for _, d := range Required(format, true) {
			if !d.Optional && !slices.ContainsFunc(d.Modules, open(t, dir).Has) {
				t.Errorf("%s: no module for %s", format, d.Name)
			}
		}
		var b bytes.Buffer
		if err := Build(&b, s); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		t.Logf("%s: %d KiB without the agent", format, b.Len()>>10)
		if format == "ext4" && b.Len() > 4<<20 {
			t.Errorf("the archive for ext4 has %d KiB without the agent", b.Len()>>10)
		}
	}
}
