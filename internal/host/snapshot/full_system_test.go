//go:build linux && system

package snapshot

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/vmm"
)

// ownMounts gives this test's thread a mount namespace, which ends with the test.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good
	noError(t, unix.Unshare(unix.CLONE_NEWNS))
	noError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// mountSmall mounts a tmpfs of a size on dir.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	noError(t, unix.Mount("small", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { noError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

func isFull(t *testing.T, what string, err error) {
	t.Helper()
	if !errs.Is(err, errs.Exhausted) || !errs.HasCode(err, "disk_full") {
		t.Errorf("%s: got %v", what, err)
	}
}

// fill writes more data than a small disk has space for.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	noError(t, err)
	defer func() { noError(t, f.Close()) }()
	text := make([]byte, sparse.ChunkSize)
	for i := range text {
		text[i] = 1
	}
	_, err = f.WriteAt(text, 4*sparse.ChunkSize)
	noError(t, err)
}

// TestAFullDiskKeepsNothingOfACapture fills the disk during a capture, before or
// after the guest's disk is copied.
func TestAFullDiskKeepsNothingOfACapture(t *testing.T) {
	ownMounts(t)
	for what, large := range map[string]func(g guest) string{
		"memory": func(g guest) string { return g.memory },
		"disk":   func(g guest) string { return g.disk },
	} {
		f, g := newFiles(t), newGuest(t)
		mountSmall(t, f.root, "512k")
		fill(t, large(g))
		noError(t, f.Prepare(id, 4096))
		noError(t, os.WriteFile(filepath.Join(f.Dir(id), vmm.SavedDevices), nil, 0o600))
		isFull(t, what, f.Capture(t.Context(), id, g.parts()))
		if left := names(t, f.Dir(id)); !slices.Equal(left, []string{vmm.SavedDevices}) {
			t.Errorf("%s: left %v", what, left)
		}
	}
}

// TestAnotherFileSystemGetsCopies copies: blocks and names cannot be shared.
func TestAnotherFileSystemGetsCopies(t *testing.T) {
	ownMounts(t)
	f, g := newFiles(t), newGuest(t)
	fill(t, g.disk)
	fill(t, g.memory)
	prepared(t, f)
	noError(t, f.Capture(t.Context(), id, g.parts()))
	_, _, err := f.Seal(t.Context(), described())
	noError(t, err)
	changed, err := os.Stat(g.disk)
	noError(t, err)
	dir := t.TempDir()
	mountSmall(t, dir, "512k")
	to := filepath.Join(dir, "copy.img")
	isFull(t, "the disk", f.CopyDisk(t.Context(), id, to))
	isFull(t, "the memory", f.LinkMemory(id, dir))
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	noError(t, unix.Mount("small", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"))
	noError(t, f.CopyDisk(t.Context(), id, to))
	noError(t, f.LinkMemory(id, dir))
	for name, from := range map[string]string{to: g.disk, filepath.Join(dir, memoryName): g.memory} {
		want, err := os.ReadFile(from)
		noError(t, err)
		holds(t, name, want)
	}
	st, err := os.Stat(to)
	if err != nil || !st.ModTime().Equal(changed.ModTime()) {
		t.Errorf("the disk's copy: %v, %v", st, err)
	}
}
