//go:build linux && system

package memory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLook(t *testing.T) {
	ownMounts(t)
	root := t.TempDir()
	dir := filepath.Join(root, "memory")
	if _, err := Look(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
	k, err := Open(dir, func(id string) string { return filepath.Join(root, id) })
	if err != nil {
		t.Fatal(err)
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.Path(id), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Look(dir); err != nil || !p.Mounted || !p.Tmpfs || p.Size>>20 != int64(host.Totalram*uint64(host.Unit))>>20 || p.Used != 1<<20 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := Unmount(dir, true); err != nil {
		t.Fatal(err)
	}
	if p, err := Look(dir); err != nil || p != (Place{}) {
		t.Errorf("unmounted it is %+v, %v", p, err)
	}
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	if p, err := Look(dir); err != nil || !p.Mounted || p.Tmpfs {
		t.Errorf("another file system is %+v, %v", p, err)
	}
}

func TestTryMountLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := TryMount(dir); err != nil {
		t.Fatal(err)
	}
	if p, err := Look(dir); err != nil || p.Mounted {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
	if err := TryMount(filepath.Join(dir, "file")); err == nil {
		t.Error("a tmpfs can be mounted on a file")
	}
}
