package snapshot

import (
	"context"
	"os"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Store keeps what is known of snapshots. An empty owner stands for every owner.
type Store interface {
	// InsertSnapshot adds one. Errors: errs.Conflict with code name_taken;
	// errs.NotFound with code image_not_found when its image is gone.
	InsertSnapshot(ctx context.Context, s Snapshot) error

	// SealSnapshot stores that it is durable, with Bytes and Sums of s, and adds
	// the event that tells of it. Errors: errs.NotFound.
	SealSnapshot(ctx context.Context, s Snapshot) error

	// Snapshot returns the one with this id or, failing that, this name.
	// Errors: errs.NotFound with code snapshot_not_found.
	Snapshot(ctx context.Context, owner, idOrName string) (Snapshot, error)

	// Snapshots returns all that the filter lets through, newest first.
	Snapshots(ctx context.Context, owner string, f Filter) ([]Snapshot, error)

	// DeleteSnapshot removes the row, and adds the event that tells of it if it
	// was durable. No error if it is gone.
	DeleteSnapshot(ctx context.Context, id string) error
}

// Parts are the files of a guest that stands.
type Parts struct {
	Memory string
	Index  string // of the memory's checksums; "" for one in RAM, which has none
	Disk   string
}

// Files keeps what snapshots consist of, in a directory for each: the machine as
// its driver saved it (vmm.Saved), and the memory and the disk of its guest.
type Files interface {
	// Dir returns the directory that the machine is saved into, whether it
	// exists or not.
	Dir(id string) string

	// Prepare makes the directory, empty. Errors: errs.Exhausted with code
	// disk_full, and errs.Missing, when the disk could not take so many bytes
	// beside the host's reserve.
	Prepare(id string, bytes int64) error

	// Capture copies the memory and the disk of a guest that stands. It is as
	// quick as files are copied; nothing is safe from a power cut yet.
	// Errors: errs.Exhausted with code disk_full; errs.Conflict with code
	// saved_unusable when the memory is not as its checksums say.
	Capture(ctx context.Context, id string, from Parts) error

	// CapturePassing does so for a snapshot that is never sealed: its memory
	// stays in RAM, for Base.
	CapturePassing(ctx context.Context, id string, from Parts) error

	// Seal adds up what was captured and makes it durable. It returns what all
	// takes on disk.
	Seal(ctx context.Context, id string) (Sums, int64, error)

	// Verify reads all of it and compares it with sums. Errors: errs.Conflict
	// with code snapshot_unusable that says which part is missing, cut or damaged.
	Verify(ctx context.Context, id string, sums Sums) error

	// HoldMemory has the memory stay in RAM once Base has read it, until Remove, or
	// until everybody who has called it has released it. From now on it counts for
	// Bases, as so many bytes until it is there.
	HoldMemory(id string, bytes int64) (release func())

	// Base returns the memory as a file that nobody can change (see
	// vmm.Spec.Base), to be closed by the caller. It is checked on the way.
	// Errors: as Verify's.
	Base(ctx context.Context, id string) (*os.File, error)

	// Bases lists all memory that is held. What is not there yet has no inode.
	Bases() []vmm.Shared

	// CopyDisk makes the file to, with the disk's content and its modification
	// time. It is checked on the way, unless blocks can be shared. Errors: as
	// Verify's, and errs.Exhausted with code disk_full.
	CopyDisk(ctx context.Context, id, to string) error

	// LinkMemory puts the memory into the directory dir of a VM that sleeps, as
	// one that is durable (see vm.Memories), without copying it.
	LinkMemory(id, dir string) error

	// Remove deletes the directory and what is in RAM. Nothing there is no error.
	// The disk may be free a little later.
	Remove(id string) error

	// Flush returns once the disk is free that removed directories took.
	Flush()

	// List returns the ids of all directories.
	List() (ids []string, err error)
}
