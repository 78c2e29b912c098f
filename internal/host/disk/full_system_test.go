//go:build system

package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// mountSmall mounts a tmpfs of size bytes on dir in a mount namespace of the test's
// thread, which ends with the test.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestFullHostDiskLeavesNothing has space for the start of the disk only, then for
// the disk without the seed.
func TestFullHostDiskLeavesNothing(t *testing.T) {
	f, v := newFiles(t), someVM()
	template, err := f.template(t.Context(), v.DiskMiB) // on another file system
	if err != nil {
		t.Fatal(err)
	}
	v.UserData = string(make([]byte, 1<<20))
	diskOnly := fmt.Sprintf("%dk", allocated(t, template)>>10+256)
	mountSmall(t, f.root, "64k")
	for _, size := range []string{"64k", diskOnly} {
		if err := unix.Mount("small", f.root, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
		err := f.Provision(t.Context(), v)
		if !errs.Is(err, errs.Exhausted) || !errs.HasCode(err, "disk_full") {
			t.Errorf("with %s: got %v", size, err)
		}
		if left := entries(t, f.root); len(left) > 0 {
			t.Errorf("with %s: left behind: %v", size, left)
		}
	}
}

// TestFullHostDiskMakesNoTemplate has no space for the formatted file system: an
// incomplete one must not become a template.
func TestFullHostDiskMakesNoTemplate(t *testing.T) {
	f, v := newFiles(t), someVM()
	if err := os.Mkdir(f.templates, 0o700); err != nil {
		t.Fatal(err)
	}
	mountSmall(t, f.templates, "64k")
	if err := f.Provision(t.Context(), v); err == nil {
		t.Error("a template was made without space for it")
	}
	for _, dir := range []string{f.templates, f.root} {
		if left := entries(t, dir); len(left) > 0 {
			t.Errorf("%s: left behind: %v", filepath.Base(dir), left)
		}
	}
}

// TestRoomIsCheckedBeforeARootIsCopied has space for the copy, but not for what must
// stay free.
func TestRoomIsCheckedBeforeARootIsCopied(t *testing.T) {
	f, v := newFiles(t), someVM()
	root := filepath.Join(t.TempDir(), "root.ext4")
	if err := os.WriteFile(root, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	v.Boot.DiskMode, v.Boot.Rootfs.Path, v.Boot.Rootfs.Size = image.DiskCopy, root, 1<<20
	mountSmall(t, f.root, "8m")
	err := f.Provision(t.Context(), v)
	if !errs.HasCode(err, "disk_full") || errs.Missing(err) == 0 {
		t.Errorf("got %v", err)
	}
	if left := entries(t, f.root); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
