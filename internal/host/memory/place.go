//go:build linux

package memory

import (
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Place describes the directory for guests' memory. Sizes are in bytes.
type Place struct {
	Mounted bool // it is a mount point
	Tmpfs   bool // of a tmpfs
	Size    int64
	Used    int64
}

// Look describes dir. Errors: fs.ErrNotExist.
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
		return Place{}, fmt.Errorf("cannot read the size of %s: %w", dir, err)
	}
	return Place{
		Mounted: true, Tmpfs: st.Type == unix.TMPFS_MAGIC,
		Size: int64(st.Blocks) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize,
	}, nil
}

// TryMount mounts a tmpfs on dir as Open does, in a mount namespace that ends with
// its thread: no other process sees it.
func TryMount(dir string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be reused
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			done <- fmt.Errorf("cannot make a mount namespace: %w", err)
			return
		}
		done <- mount(dir)
	}()
	return <-done
}
