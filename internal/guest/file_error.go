package guest

import (
	"errors"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Limits of parts of an error's message, in bytes.
const (
	maxShownPath = 256
	maxReason    = 256
)

// fileErrors translate the agent's codes. In a message, %[1]q is the path and %[2]s the
// agent's message.
var fileErrors = map[string]struct {
	kind          errs.Kind
	code, message string
	hint          string
}{
	wire.CodeNotFound:        {errs.NotFound, "file_not_found", "the guest has no file %[1]q", ""},
	wire.CodeExists:          {errs.Conflict, "file_exists", "%[1]q exists already", ""},
	wire.CodeIsDirectory:     {errs.Conflict, "is_a_directory", "%[1]q is a directory", ""},
	wire.CodeNotDirectory:    {errs.Conflict, "not_a_directory", "%[1]q, or one of its parents, is not a directory", ""},
	wire.CodeNotEmpty:        {errs.Conflict, "directory_not_empty", "the directory %[1]q is not empty", "remove it recursively"},
	wire.CodeNotFile:         {errs.Conflict, "not_a_file", "%[1]q is a device, a pipe or a socket", ""},
	wire.CodeDiskFull:        {errs.Exhausted, "guest_disk_full", "the guest's disk has no space for %[1]q", "free space in the guest"},
	wire.CodeTooLarge:        {errs.TooLarge, "file_too_large", "%[1]q is larger than the guest's file system allows", ""},
	wire.CodeOtherFilesystem: {errs.Conflict, "other_filesystem", "%[1]q cannot be renamed to another file system, or is a directory of the image", "move it with mv in the guest"},
	wire.CodeChanged:         {errs.Conflict, "file_changed", "%[1]q became shorter during the read", "read it again"},
	wire.CodeInvalidPath:     {errs.Invalid, "invalid_path", "the path %[1]q is not valid for this operation", ""},
	wire.CodeInvalidOwner:    {errs.Invalid, "invalid_owner", "%[2]s", "give NAME or UID, optionally :GROUP, of an account in the guest"},
	wire.CodeInvalidArchive:  {errs.Invalid, "invalid_archive", "%[2]s", ""},
	wire.CodeTooManyWatches:  {errs.TooMany, "too_many_watches", "cannot watch %[1]q: %[2]s", "watch a smaller tree, or raise the limits in the guest"},
	wire.CodeUnmet:           {errs.Unmet, "precondition_failed", "cannot change %[1]q: the file is not, or no longer, as the request's condition says", "read it again, with its ETag"},
	wire.CodePermission:      {errs.Forbidden, "guest_refused", "the guest refuses the operation on %[1]q: %[2]s", ""},
}

// fileError translates the error of a request about the file at path for the caller of
// the API. It returns an error of the caller's reader, writer or function unchanged.
func fileError(path string, err error) error {
	if local, ok := errors.AsType[*wire.LocalError](err); ok {
		return local.Err
	}
	return requestError(err, func(answer *wire.RemoteError) error {
		f, ok := fileErrors[answer.Code]
		if !ok {
			f = fileErrors[wire.CodePermission]
		}
		reason := printable(answer.Message, maxReason)
		e := errs.New(f.kind, f.code, f.message, path[:min(len(path), maxShownPath)], reason).WithCause(err)
		if f.hint == "" {
			return e
		}
		return e.WithHint("%s", f.hint)
	})
}
