package vm

import (
	"context"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Files keeps the files of VMs, in one run directory per VM.
type Files interface {
	RunDirs
	Disks
	Staging
}

// RunDirs are the run directories of VMs.
type RunDirs interface {
	// Dir returns the VM's run directory, whether it exists or not.
	Dir(vmID string) string
	// Remove deletes the directory. A missing one is no error.
	Remove(vmID string) error
	// SetAside moves the directory out of the way, without deleting it.
	SetAside(vmID string) error
	// Allocated returns how many bytes of the host's disk the VM's files take; 0
	// for a missing directory.
	Allocated(vmID string) (int64, error)
	// Orphans lists directories that have no VM among known.
	Orphans(known map[string]bool) ([]string, error)
}

// Disks are the disks of VMs.
type Disks interface {
	// Provision makes the run directory, the VM's disk of v.DiskMiB (sparse, or a
	// copy of the root in DiskCopy mode) and its seed. On error it leaves nothing.
	Provision(ctx context.Context, v VM) error
	// ProvisionFrom is Provision for a clone: fill makes the disk, at a path that
	// it is given.
	ProvisionFrom(ctx context.Context, v VM, fill func(ctx context.Context, path string) error) error
	// Disk returns the path of the VM's own disk, whether it exists or not.
	Disk(vmID string) string
	// Sync makes all that was written to the VM's disk durable: what a guest has not
	// flushed is in the host's page cache until then. Provision does it, too. It
	// returns early when ctx is done. Errors: errs.Exhausted with code disk_full.
	Sync(ctx context.Context, vmID string) error
	// Seed writes the NoCloud disk anew from v.
	Seed(ctx context.Context, v VM) error
	// Disks returns the VM's disks as the driver needs them; own is the path of
	// its own disk. Errors: errs.Conflict with code disk_missing when own is gone.
	Disks(v VM, own string) ([]vmm.Disk, error)
}

// Staging replaces a VM's disk and saved machine by those of a snapshot, so that
// a crash at any moment leaves either the old or the new ones.
type Staging interface {
	// Stage makes a place beside the VM's files, lets fill make a disk and a
	// directory with the saved machine there, and syncs both to disk. An earlier
	// Stage's files are removed. On error nothing is left.
	Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error
	// CommitStaged puts the staged disk in the place of the VM's, and then the
	// saved machine by calling replace, which moves that directory. It may be
	// called again after it was cut short; nothing staged is no error.
	CommitStaged(vmID string, replace func(vmID, saved string) error) error
	// Unstage removes staged files. Nothing staged is no error.
	Unstage(vmID string) error
}

// Memories keeps guests' memory: in a file in RAM while they run, which their
// machines map, and on disk while they sleep. A sleeping VM's memory is durable
// once all of it is on disk.
type Memories interface {
	RAM
	SavedMemory
}

// RAM is guests' memory in a tmpfs.
type RAM interface {
	// Path returns the file in RAM, whether it exists or not.
	Path(vmID string) string
	// Make makes the file in RAM for a guest that will boot: empty, mib large,
	// and owned by uid. An existing one is dropped.
	Make(vmID string, mib, uid int) error
	// Release drops the file in RAM. A missing one is no error.
	Release(vmID string) error
	// Held lists the VMs with a file in RAM.
	Held() (vmIDs []string, err error)
	// Used returns how many bytes of the file in RAM are in use. A driver may write
	// to it only when it saves. Errors: errs.Unsupported when there is no file.
	Used(vmID string) (bytes int64, err error)
	// CanHold returns an error unless the file in RAM could hold that many bytes.
	// Errors: Used's; errs.Exhausted with code memory_exhausted.
	CanHold(vmID string, bytes int64) error
}

// SavedMemory is the saved state of VMs: what their drivers saved of the
// machine, and its memory.
type SavedMemory interface {
	// Dir returns the directory that the VM's machine is saved into.
	Dir(vmID string) string
	// Prepare makes that directory anew, for memory of that many bytes.
	// Errors: errs.Exhausted with code disk_full when the disk could not take it
	// beside the host's reserve.
	Prepare(vmID string, bytes int64) error
	// Forget removes that directory and everything in it. A missing one is no error.
	Forget(vmID string) error
	// Replace moves the directory saved to the place of the VM's. It is called
	// again when it was cut short.
	Replace(vmID, saved string) error
	// Saved returns the file that holds the memory of a sleeping VM, and the one
	// with its checksums: on disk when it is durable, else in RAM, without checksums.
	Saved(vmID string, durable bool) (memory, index string)
	// Persist makes the memory of a sleeping VM durable, and returns how many
	// bytes its saved state takes on disk. The file in RAM stays. On error nothing of
	// the copy is left. Errors: errs.Exhausted with code disk_full.
	Persist(ctx context.Context, vmID string) (bytes int64, err error)
	// Has reports whether the memory of a sleeping VM exists: on disk when it is
	// durable, else in RAM.
	Has(vmID string, durable bool) bool
	// Recall makes sure that the file in RAM holds the memory of a sleeping VM,
	// and is owned by uid. Errors: errs.Conflict with code saved_unusable when it
	// is missing or damaged; what is on disk does not change.
	Recall(ctx context.Context, vmID string, durable bool, uid int) error
}
