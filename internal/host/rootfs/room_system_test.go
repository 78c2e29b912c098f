//go:build system

package rootfs

import (
	"os"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// TestRoomIsCheckedBeforeARootIsCopied has a root file system that only root may read:
// the programs that read it get a copy.
func TestRoomIsCheckedBeforeARootIsCopied(t *testing.T) {
	root := makeExt4(t, makeTree(t, "", false))
	if err := os.Chmod(root, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	i := New(Config{ModulesDir: dir, Reserve: 1 << 60})
	_, err := i.Inspect(t.Context(), image.Registration{
		KernelPath: write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions))), RootfsPath: root, Trusted: true,
	})
	if !errs.Is(err, errs.Exhausted) || !errs.HasCode(err, "disk_full") || errs.Missing(err) == 0 {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
