package snapshot

import (
	"context"
	"os"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Store keeps the rows of snapshots.
type Store interface {
	// InsertSnapshot adds a snapshot, and returns it with SealedUserData. Errors: errs.Conflict with code name_taken;
	// errs.NotFound with code image_not_found if its image does not exist.
	InsertSnapshot(ctx context.Context, s Snapshot) (stored Snapshot, err error)

	// SealSnapshot stores that it is durable, with Bytes and Sums of s, and adds
	// its event. Errors: errs.NotFound.
	SealSnapshot(ctx context.Context, s Snapshot) error

	// Snapshot returns the snapshot with this id or, failing that, this name.
	// Errors: errs.NotFound with code snapshot_not_found.
	Snapshot(ctx context.Context, scope access.Scope, idOrName string) (Snapshot, error)

	// Snapshots returns all that match the filter, without VM.UserData, newest first.
	Snapshots(ctx context.Context, scope access.Scope, f Filter) ([]Snapshot, error)

	// HostSnapshots returns those of this host, of every owner, without VM.UserData, newest
	// first.
	HostSnapshots(ctx context.Context) ([]Snapshot, error)

	// DeleteSnapshot deletes the row, and adds an event if it was durable. A missing
	// row is no error.
	DeleteSnapshot(ctx context.Context, id string) error
}

// Parts are the files of a guest whose CPUs are paused.
type Parts struct {
	Memory string
	Index  string // of the memory's checksums; "" for memory in RAM, which has none
	Disk   string
}

// Files keeps the files of snapshots, in a directory for each: the machine as
// its driver saved it (vmm.Saved), and the memory and the disk of its guest.
type Files interface {
	Writer
	Reader
	Memory
	Directories
}

// Writer makes the files of a snapshot.
type Writer interface {
	// Prepare makes the directory, empty. Errors: errs.Exhausted with code
	// disk_full, and errs.Missing, when the disk cannot take that many bytes
	// beside the host's reserve.
	Prepare(id string, bytes int64) error

	// Capture copies the memory and the disk of a paused guest. It is as quick as
	// files are copied; nothing survives a power cut yet.
	// Errors: errs.Exhausted with code disk_full; errs.Conflict with code
	// saved_unusable when the memory does not match its checksums.
	Capture(ctx context.Context, id string, from Parts) error

	// CaptureEphemeral is Capture for a snapshot that is never sealed: its memory
	// stays in RAM, for Base.
	CaptureEphemeral(ctx context.Context, id string, from Parts) error

	// Seal computes the checksums of what was captured, writes the manifest and
	// makes all of it durable. It returns how many bytes the snapshot takes on disk.
	Seal(ctx context.Context, snap Snapshot) (Sums, int64, error)

	// Describe writes the manifest of a durable snapshot if it is missing or differs
	// from snap. Errors: errs.Conflict with code snapshot_unusable when the files do
	// not match the snapshot's sums; errs.Exhausted with code disk_full.
	Describe(snap Snapshot) error
}

// Reader reads the files of a snapshot.
type Reader interface {
	// Dir returns the directory that the machine is saved into, whether it
	// exists or not.
	Dir(id string) string

	// Present checks that all files exist and are not empty, without reading them.
	// Errors: as Verify's.
	Present(id string) error

	// Verify reads all of it and compares it with sums. Errors: errs.Conflict
	// with code snapshot_unusable that says which part is missing, cut or damaged.
	Verify(ctx context.Context, id string, sums Sums) error

	// CopyDisk makes the file to, with the disk's content and its modification
	// time. It checks the content, unless blocks can be shared. Errors: as
	// Verify's, and errs.Exhausted with code disk_full.
	CopyDisk(ctx context.Context, id, to string) error

	// LinkMemory puts the memory into the directory dir of a VM that sleeps, as
	// durable memory (see vm.Memories), without copying it.
	LinkMemory(id, dir string) error
}

// Memory is the memory of snapshots in RAM, which many machines can map.
type Memory interface {
	// PinMemory keeps the memory in RAM once Base has read it, until Remove, or
	// until every caller has released it. From now on it counts for Bases, as that
	// many bytes until it was read.
	PinMemory(id string, bytes int64) (release func())

	// Base returns the memory as a file that no process can change (see
	// vmm.Spec.Base), to be closed by the caller. It checks the content.
	// Errors: as Verify's.
	Base(ctx context.Context, id string) (*os.File, error)

	// Bases lists all pinned memory. Memory that was not read yet has no inode.
	Bases() []vmm.Shared
}

// Directories are the directories of all snapshots.
type Directories interface {
	// Remove deletes the directory and the memory in RAM. A missing one is no
	// error. The disk space may be free a little later.
	Remove(id string) error

	// Disown marks the files as those of a snapshot that is deleted: when hatchd ends
	// before Remove, SetAside removes them at the next start.
	Disown(id string) error

	// SetAside moves the directory of a sealed snapshot out of the way, without
	// deleting it, and reports that. It removes one that is not sealed, or disowned.
	SetAside(id string) (kept bool, err error)

	// Flush returns once the disk space of removed directories is free.
	Flush()

	// List returns the ids of all directories.
	List() (ids []string, err error)
}
