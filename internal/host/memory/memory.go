//go:build linux

// Package memory stores guests' memory: as files in a tmpfs of its own while guests
// run, and on disk while they sleep.
//
// A copy on disk is sparse and has checksums; it is valid only once it is complete
// and durable. The driver saves everything else of a machine (internal/vmm), into
// the directory that [Keeper.Prepare] makes. internal/vm decides when to copy and
// when to release. Start at [Keeper].
package memory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ vm.Memories = (*Keeper)(nil)

// savedDir is the directory of the saved machine in a VM's directory.
const savedDir = "sleep"

// fresh is the suffix of an incomplete file.
const fresh = ".new"

// gone is the suffix of a directory that is being removed, before a number.
const gone = ".gone."

// ReserveBytes is the space that a sleep leaves free on the host's disk.
const ReserveBytes = 512 << 20

// Keeper stores the memory of the VMs of one data directory.
type Keeper struct {
	ram     string                   // a tmpfs
	vmDir   func(vmID string) string // VMs' directories, on disk
	reserve int64                    // bytes
	tmpfs   bool                     // ram is one

	removing sync.WaitGroup // of forgotten directories
}

// Open returns the keeper of the memory in dir, after mounting a tmpfs there if
// there is none yet. It is as large as the host's memory: internal/host/capacity
// limits what VMs may use.
func Open(dir string, vmDir func(vmID string) string) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for guests' memory: %w", err)
	}
	dir, err := filepath.EvalSymlinks(dir) // the kernel's name for it
	if err != nil {
		return nil, err
	}
	mounted, err := isMounted(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the directory for guests' memory: %w", err)
	}
	if !mounted {
		if err := mount(dir); err != nil {
			return nil, err
		}
	}
	return &Keeper{ram: dir, vmDir: vmDir, reserve: ReserveBytes, tmpfs: true}, nil
}

// In returns a keeper of memory in an ordinary directory, for fake machines. It
// mounts nothing.
func In(dir string, vmDir func(vmID string) string) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for guests' memory: %w", err)
	}
	return &Keeper{ram: dir, vmDir: vmDir}, nil
}

func mount(dir string) error {
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return fmt.Errorf("cannot read the size of the host's memory: %w", err)
	}
	options := fmt.Sprintf("mode=0700,size=%d", host.Totalram*uint64(host.Unit))
	if err := unix.Mount("hatch", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("cannot mount a tmpfs for guests' memory on %s (hatchd needs CAP_SYS_ADMIN): %w", dir, err)
	}
	return nil
}

// isMounted reports whether dir is a mount point.
func isMounted(dir string) (bool, error) {
	here, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	above, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return false, err
	}
	return here.Sys().(*syscall.Stat_t).Dev != above.Sys().(*syscall.Stat_t).Dev, nil
}

// Unmount unmounts the tmpfs in dir, unless it contains a guest's memory and force
// is not set. None there is no error.
func Unmount(dir string, force bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the directory for guests' memory: %w", err)
	}
	mounted, err := isMounted(dir)
	if err != nil || !mounted || (len(entries) > 0 && !force) {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", dir, err)
	}
	return nil
}

// Close unmounts the tmpfs if it is empty. The memory of guests that run, or that
// sleep and are not durable yet, stays.
func (k *Keeper) Close() error {
	k.removing.Wait()
	return Unmount(k.ram, false)
}

// Path implements vm.Memories.
func (k *Keeper) Path(vmID string) string { return filepath.Join(k.ram, vmID) }

// Make implements vm.Memories.
func (k *Keeper) Make(vmID string, mib, uid int) error {
	// Without room the VMM would be ended once its guest uses the memory. One that runs
	// beside its file has its memory elsewhere, and must keep a file.
	if _, err := os.Stat(k.Path(vmID)); k.tmpfs && err != nil {
		if err := k.requireFree(vmID, int64(mib)<<20); err != nil {
			return err
		}
	}
	if err := k.Release(vmID); err != nil {
		return err
	}
	f, err := newFile(k.Path(vmID), int64(mib)<<20, uid)
	if err != nil {
		return fmt.Errorf("cannot make the guest's memory: %w", err)
	}
	return f.Close()
}

// newFile makes a file that is one hole and that uid owns.
func newFile(path string, size int64, uid int) (*os.File, error) {
	f, err := sparse.Create(path, size)
	if err != nil || uid == 0 {
		return f, err
	}
	if err := f.Chown(uid, uid); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// Release implements vm.Memories.
func (k *Keeper) Release(vmID string) error {
	for _, path := range []string{k.Path(vmID), k.Path(vmID) + fresh} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot release the guest's memory: %w", err)
		}
	}
	return nil
}

// Held implements vm.Memories.
func (k *Keeper) Held() ([]string, error) {
	entries, err := os.ReadDir(k.ram)
	if err != nil {
		return nil, fmt.Errorf("cannot list guests' memory: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), fresh) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Dir implements vm.Memories.
func (k *Keeper) Dir(vmID string) string { return filepath.Join(k.vmDir(vmID), savedDir) }

// Prepare implements vm.Memories. It removes what an earlier save left.
func (k *Keeper) Prepare(vmID string, bytes int64) error {
	if err := k.Forget(vmID); err != nil {
		return err
	}
	if err := space.Require(k.vmDir(vmID), "the memory of VM "+vmID, bytes, k.reserve); err != nil {
		return err
	}
	if err := os.Mkdir(k.Dir(vmID), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory for the saved machine: %w", err)
	}
	return nil
}

// CanHold implements vm.Memories.
func (k *Keeper) CanHold(vmID string, bytes int64) error {
	used, err := k.Used(vmID)
	if err != nil {
		return err
	}
	return k.requireFree(vmID, bytes-used)
}

// littleRAM is how much of the tmpfs is left when it is as good as full. No VM is smaller.
const littleRAM = 32 << 20

// Check returns an error if the tmpfs is full: a VM whose guest uses more memory would be
// ended.
func (k *Keeper) Check() error {
	free, err := space.Free(k.ram)
	if err == nil && k.tmpfs && free < littleRAM {
		err = fmt.Errorf("%s has %d MiB left", k.ram, free>>20)
	}
	return err
}

func (k *Keeper) requireFree(vmID string, bytes int64) error {
	free, err := space.Free(k.ram)
	if err != nil || free >= bytes {
		return err
	}
	return errs.New(errs.Exhausted, "memory_exhausted",
		"the host's RAM for guests' memory has %d MiB left; that of VM %s needs about %d", free>>20, vmID, bytes>>20).
		WithHint("stop or delete a VM")
}

// Used implements vm.Memories.
func (k *Keeper) Used(vmID string) (bytes int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(k.Path(vmID), &st); err != nil {
		return 0, errs.New(errs.Unsupported, "memory_not_shared", "the memory of VM %s cannot be saved: the VM was started without a file for it", vmID).
			WithHint("restart the VM").WithCause(err)
	}
	return st.Blocks * 512, nil
}

// Forget implements vm.Memories. It removes large files, which takes long, in the
// background.
func (k *Keeper) Forget(vmID string) error {
	forgotten := fmt.Sprintf("%s%s%d", k.Dir(vmID), gone, time.Now().UnixNano())
	if err := os.Rename(k.Dir(vmID), forgotten); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the saved machine: %w", err)
	}
	k.removing.Go(func() {
		// Directories that an earlier daemon left are removed too.
		all, _ := filepath.Glob(k.Dir(vmID) + gone + "*") // the pattern is well formed
		for _, path := range all {
			_ = os.RemoveAll(path)
		}
	})
	return nil
}

// Replace implements vm.Memories.
func (k *Keeper) Replace(vmID, saved string) error {
	if err := k.Forget(vmID); err != nil {
		return err
	}
	if err := os.Rename(saved, k.Dir(vmID)); err != nil {
		return fmt.Errorf("cannot move the saved machine: %w", err)
	}
	return nil
}

// Saved implements vm.Memories.
func (k *Keeper) Saved(vmID string, durable bool) (memory, index string) {
	if durable {
		return filepath.Join(k.Dir(vmID), memoryName), filepath.Join(k.Dir(vmID), indexName)
	}
	return k.Path(vmID), ""
}
