package wire

import (
	"context"
	"io"
)

// The operations on files. The reply only confirms that the agent knows the operation.
// Frames follow up to fileEnd or fileError, with fileBusy while the agent works. If
// hatchd sends frames, too, they follow its request at once.
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

	// The same with a condition, which agents that know only the operations above
	// would not notice.
	OpWriteFileIf  Op = "file.write.if"
	OpRemoveFileIf Op = "file.remove.if"
)

// The frames of an operation on files.
const (
	fileBegan byte = 'a' // the operation is possible and has started; JSON, or nothing
	fileData  byte = 'd' // bytes of the content
	fileZeros byte = 'z' // 8 bytes, big-endian: number of zero bytes of the content
	fileItem  byte = 'i' // JSON
	fileBusy  byte = 'b' // the agent is still working
	fileEnd   byte = 'e' // complete; JSON, or nothing
	fileError byte = 'x' // Reply: the operation failed, and the content is incomplete
)

// Codes of errors about files.
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
	CodeChanged         = "changed" // the file became shorter during the read
	CodeInvalidPath     = "invalid_path"
	CodeInvalidOwner    = "invalid_owner"
	CodeInvalidArchive  = "invalid_archive"
	CodeTooManyWatches  = "too_many_watches"
	CodeUnmet           = "unmet" // the condition of the request does not hold
)

// Kinds of files.
const (
	KindFile      = "file"
	KindDirectory = "directory"
	KindSymlink   = "symlink"
	KindOther     = "other"
)

// UnknownSize is the size of a file whose content the kernel generates during the read.
const UnknownSize = -1

// FileInfo describes one file. Its bytes need not be UTF-8.
type FileInfo struct {
	Path    []byte `json:"path"` // in a listing only the name
	Kind    string `json:"kind"`
	Size    int64  `json:"size"` // bytes, or UnknownSize
	Mode    uint32 `json:"mode"` // at most 07777
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

// ReadFileArgs are the arguments of OpReadFile.
type ReadFileArgs struct {
	Path   []byte `json:"path"`
	Offset int64  `json:"offset"` // negative means from the end
	Length int64  `json:"length"` // negative means up to the end
}

// WriteFileArgs are the arguments of OpWriteFile.
type WriteFileArgs struct {
	Path    []byte         `json:"path"`
	Mode    *uint32        `json:"mode,omitempty"`
	Owner   *string        `json:"owner,omitempty"`
	Parents bool           `json:"parents,omitempty"`
	If      *FileCondition `json:"if,omitempty"` // with OpWriteFileIf
}

// FileCondition is a condition on the file that a path leads to, before it is changed.
type FileCondition struct {
	Match     *FileVersions `json:"match,omitempty"`      // it is one of these
	NoneMatch *FileVersions `json:"none_match,omitempty"` // it is none of these
	NotAfter  *int64        `json:"not_after,omitempty"`  // it exists, and was not modified after this second since 1970
}

// FileVersions are versions of one file.
type FileVersions struct {
	Any  bool          `json:"any,omitempty"` // each version
	List []FileVersion `json:"list,omitempty"`
}

// FileVersion is one version of a file.
type FileVersion struct {
	ModifiedNanos int64 `json:"mtime_ns"` // since 1970
	Size          int64 `json:"size"`
}

// MakeDirectoryArgs are the arguments of OpMakeDirectory.
type MakeDirectoryArgs struct {
	Path    []byte `json:"path"`
	Mode    uint32 `json:"mode"`
	Owner   string `json:"owner"`
	Parents bool   `json:"parents,omitempty"`
}

// RenameFileArgs are the arguments of OpRenameFile.
type RenameFileArgs struct {
	From []byte `json:"from"`
	To   []byte `json:"to"`
}

// RemoveFileArgs are the arguments of OpRemoveFile.
type RemoveFileArgs struct {
	Path      []byte         `json:"path"`
	Recursive bool           `json:"recursive,omitempty"`
	If        *FileCondition `json:"if,omitempty"` // with OpRemoveFileIf
}

// WriteTreeArgs are the arguments of OpWriteTree.
type WriteTreeArgs struct {
	Path  []byte  `json:"path"`
	Owner *string `json:"owner,omitempty"`
}

// WatchFilesArgs are the arguments of OpWatchFiles.
type WatchFilesArgs struct {
	Path      []byte `json:"path"`
	Recursive bool   `json:"recursive,omitempty"`
}

// TailFileArgs are the arguments of OpTailFile.
type TailFileArgs struct {
	Path   []byte `json:"path"`
	Lines  int64  `json:"lines"` // negative means all
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

// FileHandler serves the operations on files. A [Handler] that does not implement it
// does not know the operations. An error that is a [*RemoteError] is sent with its code.
// The context of a method is cancelled when hatchd closes the stream. Methods call began
// when the operation is known to be possible, before any output.
type FileHandler interface {
	FileReader
	FileChanger
	FileFollower
}

// FileReader reads files and directories.
type FileReader interface {
	StatFile(ctx context.Context, args PathArgs) (FileInfo, error)
	ReadFile(ctx context.Context, args ReadFileArgs, began func(FileInfo) error, w FileWriter) error
	ListFiles(ctx context.Context, args PathArgs, began func() error, each func(FileInfo) error) error
	ReadTree(ctx context.Context, args PathArgs, began func() error, w FileWriter) error
}

// FileChanger changes files and directories. Readers of content return io.EOF only if the
// content is complete.
type FileChanger interface {
	MakeDirectory(ctx context.Context, args MakeDirectoryArgs) (FileInfo, error)
	RenameFile(ctx context.Context, args RenameFileArgs) (FileInfo, error)
	RemoveFile(ctx context.Context, args RemoveFileArgs) error
	WriteFile(ctx context.Context, args WriteFileArgs, content io.Reader) (FileInfo, error)
	WriteTree(ctx context.Context, args WriteTreeArgs, archive io.Reader) error
}

// FileFollower follows files as they change.
type FileFollower interface {
	// WatchFiles reports changes in batches. Each batch is sent immediately.
	WatchFiles(ctx context.Context, args WatchFilesArgs, began func() error, report func([]FileChange) error) error
	TailFile(ctx context.Context, args TailFileArgs, began func() error, w FileWriter) error
}

// FileWriter sends content. It buffers data up to full frames; Flush sends a partial
// one.
type FileWriter interface {
	io.Writer
	io.ReaderFrom
	Flush() error
}
