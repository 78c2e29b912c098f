//go:build linux

package memory

import (
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Place is what there is at the directory for guests' memory. Sizes are in bytes.
type Place struct {
	Mounted bool // a file system begins there
	Tmpfs   bool // and it is in RAM; else what it says of sizes is a disk's
	Size    int64
	Used    int64
}

// Look tells what there is in dir. Errors: fs.ErrNotExist.
func Look(dir string) (Place, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Place{}, err
	}
	mounted, err := isMounted(dir)
	if err != nil || !mounted {
		return Place{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Place{}, fmt.Errorf("cannot tell the size of %s: %w", dir, err)
	}
	return Place{
		Mounted: true, Tmpfs: st.Type == unix.TMPFS_MAGIC,
		Size: int64(st.Blocks) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize,
	}, nil
}

// TryMount mounts a tmpfs on dir as Open does, where nobody else sees it: in a
// mount namespace that ends with the thread that is in it.
func TryMount(dir string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be reused
		done <- mountUnseen(dir)
	}()
	return <-done
}

func mountUnseen(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot keep mounts to a namespace: %w", err)
	}
	return mount(dir)
}
