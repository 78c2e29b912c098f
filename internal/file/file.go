// Package file is the files inside a guest, read and written through the
// guest's agent: single files of any size, directories, trees as tar, and
// watches.
//
// Paths are absolute and raw bytes, as Linux has them: they need not be UTF-8.
// The package knows no HTTP and no wire protocol; doors stand on [Service], and
// internal/guest supplies [Guest]. Start at [Service].
package file

import (
	"context"
	"io"
	"time"
)

// Kind of a file.
type Kind string

// The kinds.
const (
	Regular   Kind = "file"
	Directory Kind = "directory"
	Symlink   Kind = "symlink"
	Other     Kind = "other" // devices, sockets, pipes
)

// Info describes one file.
type Info struct {
	Path        string // absolute
	Kind        Kind
	Size        int64  // bytes
	Mode        uint32 // permission bits with setuid, setgid and sticky: 07777
	UID, GID    int
	User, Group string // names in the guest; "" when it has none for them
	ModifiedAt  time.Time
	Target      string // of a symlink
}

// Owner names who shall own what is written: NAME or UID, optionally :GROUP.
// "" means root.
type Owner string

// ReadSpec says what to read of a file.
type ReadSpec struct {
	Path   string
	Offset int64 // from the start; negative: from the end, or the start when that is nearer
	Length int64 // negative: up to the end; what lies beyond the end is left out
}

// WriteSpec says where to write a file. It replaces what is there in one step,
// once all of it has come: a write that is cut short leaves the old file.
type WriteSpec struct {
	Path    string
	Mode    *uint32 // nil: that of the file it replaces, else 0644
	Owner   *Owner  // nil: that of the file it replaces, else root
	Parents bool    // make missing directories
}

// TreeSpec says where and how a tar archive is unpacked. Nothing is written
// outside of Path, whatever the archive or links in the guest say.
type TreeSpec struct {
	Path  string // a directory; made when missing
	Owner *Owner // nil: as the archive says
}

// ChangeKind says what happened to a watched file.
type ChangeKind string

// The kinds of changes.
const (
	Created ChangeKind = "create"
	Written ChangeKind = "write"
	Removed ChangeKind = "remove"
	Renamed ChangeKind = "rename" // From is the old path, Path the new one
	Changed ChangeKind = "chmod"
	Missed  ChangeKind = "missed" // events were lost; look again
)

// Change is one event of a watch.
type Change struct {
	Kind ChangeKind
	Path string
	From string // of Renamed
	At   time.Time
}

// Guest is what one guest's agent can do with files. Every method returns
// errs.Unavailable with code agent_unavailable when the agent does not answer
// in bounded time, errs.Unsupported with code agent_too_old when it does not
// know the operation, errs.NotFound with code file_not_found, errs.Conflict
// with code file_exists, is_a_directory, not_a_directory or
// directory_not_empty, errs.Exhausted with code guest_disk_full, and
// errs.Forbidden with code guest_refused for what the guest's kernel refuses.
type Guest interface {
	// ReadFile opens a regular file, through links. Info is of the open file,
	// all of it. The reader ends with an error, not with io.EOF, when the file
	// could not be read to the end.
	ReadFile(ctx context.Context, spec ReadSpec) (Info, io.ReadCloser, error)

	// WriteFile writes all of content, and returns once it is on the guest's
	// disk in the file's place; a link at the path stays, and its target is
	// replaced. An error of content is returned and leaves the old file.
	WriteFile(ctx context.Context, spec WriteSpec, content io.Reader) (Info, error)

	// StatFile describes the file itself, be it a link.
	StatFile(ctx context.Context, path string) (Info, error)

	// ListFiles calls each for the directory's entries, sorted by name.
	ListFiles(ctx context.Context, path string, each func(Info) error) error

	// MakeDirectory makes one; with parents, missing ones above it, and one
	// that exists is no error.
	MakeDirectory(ctx context.Context, path string, mode uint32, owner Owner, parents bool) (Info, error)

	// RenameFile moves a file; what is at the new path is replaced.
	RenameFile(ctx context.Context, from, to string) (Info, error)

	// RemoveFile removes a file or an empty directory; with recursive, a tree.
	RemoveFile(ctx context.Context, path string, recursive bool) error

	// ReadTree returns the file or tree at path as a tar archive, whose names
	// begin with the last part of path, "." for "/". A link at the path is all
	// there is in it. Sparse, special and vanishing files do not break it. It
	// ends with an error when it is not whole.
	ReadTree(ctx context.Context, path string) (io.ReadCloser, error)

	// WriteTree unpacks a tar archive. An error of archive is returned.
	WriteTree(ctx context.Context, spec TreeSpec, archive io.Reader) error

	// WatchFiles reports changes of path (a file or directory; with recursive,
	// all below it, directories made later included) until ctx is done or
	// report fails. began is called once no later change can be missed.
	WatchFiles(ctx context.Context, path string, recursive bool, began func(), report func(Change) error) error

	// TailFile writes the last lines of a text file (all when lines < 0) to w
	// and, with follow, what is appended until ctx is done, across rotation.
	TailFile(ctx context.Context, path string, lines int, follow bool, w io.Writer) error
}

// Guests finds guests to work in.
type Guests interface {
	// FileGuest returns the guest of the owner's VM, which is woken if it
	// sleeps. Errors: errs.NotFound, errs.Conflict with code vm_not_running,
	// errs.Unsupported when this VM's driver reaches no agent; of the wake.
	FileGuest(ctx context.Context, owner, vmID string) (Guest, error)

	// AwakeFileGuest does so, too, but wakes nobody: a VM that sleeps is
	// errs.Conflict with code vm_not_running.
	AwakeFileGuest(ctx context.Context, owner, vmID string) (Guest, error)
}
