// Package file reads, writes and watches the files inside a guest through its
// agent: single files of any size, directories, and trees as tar.
//
// Paths are absolute, and any bytes that Linux accepts: they need not be UTF-8.
// The package knows no HTTP and no wire protocol; doors use [Service], and
// internal/guest supplies [Guest]. Start at [Service].
package file

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
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

// Owner is the owner of a new file: NAME or UID, optionally :GROUP. "" means root.
type Owner string

// ReadSpec says which part of a file to read.
type ReadSpec struct {
	Path   string
	Offset int64 // from the start; negative: from the end, but not before the start
	Length int64 // negative: up to the end; the part ends at the end of the file
}

// WriteSpec says where to write a file. It replaces an existing one atomically,
// when the content is complete: an incomplete one leaves the old file.
type WriteSpec struct {
	Path    string
	Mode    *uint32 // nil: that of the file it replaces, else 0644
	Owner   *Owner  // nil: that of the file it replaces, else root
	Parents bool    // make missing directories
	If      *Condition
}

// RemoveSpec says what to remove.
type RemoveSpec struct {
	Path      string
	Recursive bool // a tree
	If        *Condition
}

// Condition is a condition on the file that a path leads to. If it does not hold, the
// file is not changed: errs.Unmet with code precondition_failed. A program of the guest
// may change the file after the check.
type Condition struct {
	Match     *Versions  // nil, or it is one of these
	NoneMatch *Versions  // nil, or it is none of these
	NotAfter  *time.Time // nil, or it exists and was not modified after this second
}

// Check returns an error unless the condition holds for the file at a path, of which
// the info is nil if there is none.
func (c *Condition) Check(path string, now *Info) error {
	if c == nil {
		return nil
	}
	is := func(all *Versions) bool {
		return now != nil && (all.Any || slices.Contains(all.List, Version{now.ModifiedAt.UnixNano(), now.Size}))
	}
	switch {
	case c.Match != nil && !is(c.Match),
		c.NoneMatch != nil && is(c.NoneMatch),
		c.NotAfter != nil && (now == nil || now.ModifiedAt.Unix() > c.NotAfter.Unix()):
		return errs.New(errs.Unmet, "precondition_failed", "cannot change %q: the file is not, or no longer, as the request's condition says", errs.Brief(path)).
			WithHint("read it again, with its ETag")
	}
	return nil
}

// Versions are versions of one file.
type Versions struct {
	Any  bool // each version
	List []Version
}

// Version is one version of a file.
type Version struct {
	ModifiedNanos int64 // since 1970
	Size          int64 // bytes
}

// TreeSpec says where and how a tar archive is unpacked. Nothing is written outside
// of Path, also not through links in the archive or the guest.
type TreeSpec struct {
	Path  string // a directory; made when missing
	Owner *Owner // nil: those in the archive
}

// ChangeKind is a kind of change of a watched file.
type ChangeKind string

// The kinds of changes.
const (
	Created ChangeKind = "create"
	Written ChangeKind = "write"
	Removed ChangeKind = "remove"
	Renamed ChangeKind = "rename" // From is the old path, Path the new one
	Changed ChangeKind = "chmod"
	Missed  ChangeKind = "missed" // changes were lost; list the files again
)

// Change is one event of a watch.
type Change struct {
	Kind ChangeKind
	Path string
	From string // of Renamed
	At   time.Time
}

// Guest works on the files of one guest. Each method returns errs.Unavailable with
// code agent_unavailable when the agent does not answer in time,
// errs.Unsupported with code agent_too_old when it does not know the operation,
// errs.NotFound with code file_not_found, errs.Conflict
// with code file_exists, is_a_directory, not_a_directory or
// directory_not_empty, errs.Exhausted with code guest_disk_full, and
// errs.Forbidden with code guest_refused when the guest's kernel refuses.
type Guest interface {
	Reader
	Writer
	Follower
}

// Reader reads files and directories.
type Reader interface {
	// ReadFile opens a regular file, and follows links. Info describes the whole
	// file. The reader ends with an error other than io.EOF when the part could not
	// be read to its end.
	ReadFile(ctx context.Context, spec ReadSpec) (Info, io.ReadCloser, error)

	// StatFile describes a file, and a link itself.
	StatFile(ctx context.Context, path string) (Info, error)

	// ListFiles calls each for the directory's entries, sorted by name.
	ListFiles(ctx context.Context, path string, each func(Info) error) error

	// ReadTree returns the file or tree at path as a tar archive, whose names begin
	// with the last part of path, "." for "/". Of a link at path, it has the link
	// only. It may have sparse and special files, and leaves out files that are
	// removed meanwhile. An incomplete archive ends with an error.
	ReadTree(ctx context.Context, path string) (io.ReadCloser, error)
}

// Writer changes files and directories.
type Writer interface {
	// WriteFile writes content, and returns when it is on the guest's disk and has
	// replaced the file. It follows a link at the path. An error of content is
	// returned and leaves the old file.
	WriteFile(ctx context.Context, spec WriteSpec, content io.Reader) (Info, error)

	// MakeDirectory makes a directory; with parents, missing ones above it, too, and
	// an existing one is no error.
	MakeDirectory(ctx context.Context, path string, mode uint32, owner Owner, parents bool) (Info, error)

	// RenameFile moves a file, and replaces one at the new path.
	RenameFile(ctx context.Context, from, to string) (Info, error)

	// RemoveFile removes a file or an empty directory; with Recursive, a tree.
	RemoveFile(ctx context.Context, spec RemoveSpec) error

	// WriteTree unpacks a tar archive. An error of archive is returned.
	WriteTree(ctx context.Context, spec TreeSpec, archive io.Reader) error
}

// Follower follows files as they change.
type Follower interface {
	// WatchFiles reports changes of a file or directory, with recursive of all below
	// it, until ctx is done or report fails. It calls began once it watches.
	WatchFiles(ctx context.Context, path string, recursive bool, began func(), report func(Change) error) error

	// TailFile writes the last lines of a text file (all when lines < 0) to w
	// and, with follow, what is appended until ctx is done, across rotation.
	TailFile(ctx context.Context, path string, lines int, follow bool, w io.Writer) error
}

// Mode says what opening a guest does to a VM that sleeps.
type Mode int

// The modes.
const (
	Wake   Mode = iota // it is woken
	NoWake             // it is errs.Conflict with code vm_not_running
)

// Guests opens guests.
type Guests interface {
	// Open returns the guest of a VM that the scope sees. The VM is in use until
	// release, which the caller must call once. Errors: errs.NotFound,
	// errs.Conflict with code vm_not_running, errs.Unsupported when the VM's driver
	// reaches no agent; those of a wake.
	Open(ctx context.Context, scope access.Scope, vmID string, mode Mode) (guest Guest, release func(), err error)
}
