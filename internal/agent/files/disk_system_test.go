//go:build system

package files

import (
	"archive/tar"
	"bytes"
	"context"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// onSmallDisk runs do with the path of a file system of 4 MiB, in a mount namespace of
// its own.
func onSmallDisk(t *testing.T, do func(dir string)) {
	t.Helper()
	dir, done := t.TempDir(), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("small", dir, "tmpfs", 0, "size=4m")
		}
		if err == nil {
			do(dir)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFullDiskLeavesTheOldFile(t *testing.T) {
	onSmallDisk(t, func(dir string) {
		f, large := New("/"), bytes.Repeat([]byte("x"), 8<<20)
		put(t, dir+"/f", "old")
		_, err := f.WriteFile(context.Background(), wire.WriteFileArgs{Path: []byte(dir + "/f")}, bytes.NewReader(large))
		requireRefusal(t, err, wire.CodeDiskFull)
		requireText(t, dir+"/f", "old")
		requireNames(t, dir, "f")
		archive := pack(t, file("small"), tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755})
		archive.Truncate(1536) // without the end-of-archive blocks
		last := tar.NewWriter(archive)
		if err := last.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: int64(len(large))}); err != nil {
			t.Error(err)
		}
		archive.Write(large)
		requireRefusal(t, f.WriteTree(context.Background(), wire.WriteTreeArgs{Path: []byte(dir)}, archive), wire.CodeDiskFull)
		requireNames(t, dir, "d", "f", "small")
		if err := write(f, dir+"/g", "the disk has space again"); err != nil {
			t.Error(err)
		}
	})
}
