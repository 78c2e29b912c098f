package wire

import (
	"context"
	"io"
)

// The operations on files. The reply says only that the operation is known;
// then come frames, among them those that say that the agent is still at work,
// until an end or an error. Where hatchd sends frames, too, it begins right
// behind the request.
const (
	OpReadFile      Op = "file.read"   // ReadFileArgs → FileInfo, data
	OpWriteFile     Op = "file.write"  // WriteFileArgs, data → FileInfo at the end
	OpStatFile      Op = "file.stat"   // PathArgs → FileInfo at the end
	OpListFiles     Op = "file.list"   // PathArgs → items: FileInfo
	OpMakeDirectory Op = "file.mkdir"  // MakeDirectoryArgs → FileInfo at the end
	OpRenameFile    Op = "file.rename" // RenameFileArgs → FileInfo at the end
	OpRemoveFile    Op = "file.remove" // RemoveFileArgs → nothing
	OpReadTree      Op = "tree.read"   // PathArgs → data: a tar archive
	OpWriteTree     Op = "tree.write"  // WriteTreeArgs, data: a tar archive → nothing
	OpWatchFiles    Op = "file.watch"  // WatchFilesArgs → items: FileChange
	OpTailFile      Op = "file.tail"   // TailFileArgs → data
)

// The frames of an operation on files.
const (
	fileBegan byte = 'a' // what was asked for is possible, and begins; JSON, or nothing
	fileData  byte = 'd' // bytes of a content
	fileZeros byte = 'z' // 8 bytes, big-endian: so many zero bytes of a content
	fileItem  byte = 'i' // JSON
	fileBusy  byte = 'b' // still at work
	fileEnd   byte = 'e' // that was all; JSON, or nothing
	fileError byte = 'x' // Reply: it failed, and what came before is not all
)

// Codes of what goes wrong with files.
const (
	CodeNotFound        = "not_found"
	CodeExists          = "exists"
	CodeIsDirectory     = "is_a_directory"
	CodeNotDirectory    = "not_a_directory"
	CodeNotEmpty        = "not_empty"
	CodeNotFile         = "not_a_file" // a device, pipe or socket
	CodeDiskFull        = "disk_full"
	CodePermission      = "permission"
	CodeTooLarge        = "too_large"
	CodeOtherFilesystem = "other_filesystem"
	CodeChanged         = "changed" // the file got shorter while it was read
	CodeInvalidPath     = "invalid_path"
	CodeInvalidOwner    = "invalid_owner"
	CodeInvalidArchive  = "invalid_archive"
	CodeTooManyWatches  = "too_many_watches"
)

// Kinds of files.
const (
	KindFile      = "file"
	KindDirectory = "directory"
	KindSymlink   = "symlink"
	KindOther     = "other"
)

// UnknownSize is the size of an open file that is made up as it is read.
const UnknownSize = -1

// FileInfo describes one file. Its bytes need not be UTF-8.
type FileInfo struct {
	Path    []byte `json:"path"` // in a listing: the name
	Kind    string `json:"kind"`
	Size    int64  `json:"size"` // bytes, or UnknownSize
	Mode    uint32 `json:"mode"` // 07777
	UID     int64  `json:"uid"`
	GID     int64  `json:"gid"`
	User    []byte `json:"user,omitempty"`
	Group   []byte `json:"group,omitempty"`
	Seconds int64  `json:"mtime"` // since 1970
	Nanos   int64  `json:"mtime_ns,omitempty"`
	Target  []byte `json:"target,omitempty"`
}

// PathArgs name one file.
type PathArgs struct {
	Path []byte `json:"path"`
}

// ReadFileArgs are those of OpReadFile.
type ReadFileArgs struct {
	Path   []byte `json:"path"`
	Offset int64  `json:"offset"` // negative: from the end
	Length int64  `json:"length"` // negative: up to the end
}

// WriteFileArgs are those of OpWriteFile.
type WriteFileArgs struct {
	Path    []byte  `json:"path"`
	Mode    *uint32 `json:"mode,omitempty"`
	Owner   *string `json:"owner,omitempty"`
	Parents bool    `json:"parents,omitempty"`
}

// MakeDirectoryArgs are those of OpMakeDirectory.
type MakeDirectoryArgs struct {
	Path    []byte `json:"path"`
	Mode    uint32 `json:"mode"`
	Owner   string `json:"owner"`
	Parents bool   `json:"parents,omitempty"`
}

// RenameFileArgs are those of OpRenameFile.
type RenameFileArgs struct {
	From []byte `json:"from"`
	To   []byte `json:"to"`
}

// RemoveFileArgs are those of OpRemoveFile.
type RemoveFileArgs struct {
	Path      []byte `json:"path"`
	Recursive bool   `json:"recursive,omitempty"`
}

// WriteTreeArgs are those of OpWriteTree.
type WriteTreeArgs struct {
	Path  []byte  `json:"path"`
	Owner *string `json:"owner,omitempty"`
}

// WatchFilesArgs are those of OpWatchFiles.
type WatchFilesArgs struct {
	Path      []byte `json:"path"`
	Recursive bool   `json:"recursive,omitempty"`
}

// TailFileArgs are those of OpTailFile.
type TailFileArgs struct {
	Path   []byte `json:"path"`
	Lines  int64  `json:"lines"` // negative: all
	Follow bool   `json:"follow,omitempty"`
}

// Kinds of changes.
const (
	ChangeCreate = "create"
	ChangeWrite  = "write"
	ChangeRemove = "remove"
	ChangeRename = "rename"
	ChangeMode   = "chmod"
	ChangeMissed = "missed"
)

// FileChange is one event of a watch.
type FileChange struct {
	Kind    string `json:"kind"`
	Path    []byte `json:"path"`
	From    []byte `json:"from,omitempty"` // of a rename
	Seconds int64  `json:"at"`             // since 1970, by the guest's clock
	Nanos   int64  `json:"at_ns,omitempty"`
}

// FileHandler is what a [Handler] also implements when it serves files. An
// error that is a [*RemoteError] passes with its code. Each method ends when
// ctx does, which is when hatchd lets go. Where there is began, it is called
// once, before anything is written or reported: what was asked for is possible.
type FileHandler interface {
	StatFile(ctx context.Context, args PathArgs) (FileInfo, error)
	MakeDirectory(ctx context.Context, args MakeDirectoryArgs) (FileInfo, error)
	RenameFile(ctx context.Context, args RenameFileArgs) (FileInfo, error)
	RemoveFile(ctx context.Context, args RemoveFileArgs) error

	ReadFile(ctx context.Context, args ReadFileArgs, began func(FileInfo) error, w FileWriter) error
	ListFiles(ctx context.Context, args PathArgs, began func() error, each func(FileInfo) error) error
	ReadTree(ctx context.Context, args PathArgs, began func() error, w FileWriter) error

	// WriteFile and WriteTree read to the end of what comes, which is io.EOF
	// only when it is whole.
	WriteFile(ctx context.Context, args WriteFileArgs, content io.Reader) (FileInfo, error)
	WriteTree(ctx context.Context, args WriteTreeArgs, archive io.Reader) error

	// WatchFiles reports changes some at a time, which are sent at once.
	WatchFiles(ctx context.Context, args WatchFilesArgs, began func() error, report func([]FileChange) error) error
	TailFile(ctx context.Context, args TailFileArgs, began func() error, w FileWriter) error
}

// FileWriter takes a content. It gathers full frames, also from a reader, and
// sends less when it is flushed.
type FileWriter interface {
	io.Writer
	io.ReaderFrom
	Flush() error
}
