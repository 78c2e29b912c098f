//go:build linux && system

package memory

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// ownMounts gives this test's thread a mount namespace, which ends with the test.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

func TestTheTmpfsStaysWhileItHoldsMemory(t *testing.T) {
	ownMounts(t)
	root := t.TempDir()
	dir, vms := filepath.Join(root, "memory"), func(id string) string { return filepath.Join(root, id) }
	k, err := Open(dir, vms)
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Fatalf("the file system is %x, %v", fs.Type, err)
	}
	const uid = 913999
	if err := k.Make(id, 64, uid); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(k.Path(id), &st); err != nil || st.Uid != uid || st.Mode&0o777 != 0o600 || st.Size != 64<<20 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir, vms) // as the next daemon does
	if err != nil {
		t.Fatal(err)
	}
	if held, err := again.Held(); err != nil || len(held) != 1 {
		t.Errorf("held: %v, %v", held, err)
	}
	if err := again.Release(id); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if mounted, err := isMounted(dir); err != nil || mounted {
			t.Errorf("mounted: %v, %v", mounted, err)
		}
	}
	if err := Unmount(filepath.Join(root, "never"), true); err != nil {
		t.Error(err)
	}
}

func TestForceUnmountsWithMemory(t *testing.T) {
	ownMounts(t)
	dir := filepath.Join(t.TempDir(), "memory")
	k, err := Open(dir, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Make(id, 64, 0); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir, true); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestAFullDiskLeavesNothing fills the disk during a copy; the memory stays in RAM.
func TestAFullDiskLeavesNothing(t *testing.T) {
	ownMounts(t)
	k := newKeeper(t)
	if err := unix.Mount("small", k.vmDir(id), "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(k.vmDir(id), unix.MNT_DETACH) }()
	asleep(t, k, 16)
	if err := unix.Mount("small", k.vmDir(id), "tmpfs", unix.MS_REMOUNT, "size=256k"); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = 1
	}
	f, err := os.OpenFile(k.Path(id), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(text, 12<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Persist(t.Context(), id); !errs.HasCode(err, "disk_full") {
		t.Fatalf("got %v", err)
	}
	if entries, err := os.ReadDir(k.Dir(id)); err != nil || len(entries) != 2 {
		t.Errorf("left %v, %v", entries, err)
	}
	if !k.Has(id, false) {
		t.Error("the memory is gone")
	}
}
