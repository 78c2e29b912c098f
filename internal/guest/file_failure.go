package guest

import (
	"errors"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// maxShownPath bounds a path in a sentence, and maxReason a guest's own words,
// in bytes.
const (
	maxShownPath = 256
	maxReason    = 256
)

// fileFailures say what an agent's code means; the first place in a sentence is
// for the path, the second for the guest's own words.
var fileFailures = map[string]struct {
	kind           errs.Kind
	code, sentence string
	hint           string
}{
	wire.CodeNotFound:        {errs.NotFound, "file_not_found", "there is no file at %[1]q", ""},
	wire.CodeExists:          {errs.Conflict, "file_exists", "there is a file at %[1]q already", ""},
	wire.CodeIsDirectory:     {errs.Conflict, "is_a_directory", "there is a directory at %[1]q", ""},
	wire.CodeNotDirectory:    {errs.Conflict, "not_a_directory", "%[1]q, or a part of it, is no directory", ""},
	wire.CodeNotEmpty:        {errs.Conflict, "directory_not_empty", "the directory %[1]q is not empty", "remove it with all that is in it"},
	wire.CodeNotFile:         {errs.Conflict, "not_a_file", "%[1]q is a device, a pipe or a socket", ""},
	wire.CodeDiskFull:        {errs.Exhausted, "guest_disk_full", "the guest has no room for %[1]q", "free some in the guest"},
	wire.CodeTooLarge:        {errs.TooLarge, "file_too_large", "%[1]q is larger than the guest's file system takes", ""},
	wire.CodeOtherFilesystem: {errs.Conflict, "other_filesystem", "%[1]q cannot be renamed to another file system, or is a directory of the image", "copy it in the guest, with mv"},
	wire.CodeChanged:         {errs.Conflict, "file_changed", "%[1]q got shorter while it was read", "read it again"},
	wire.CodeInvalidPath:     {errs.Invalid, "invalid_path", "the guest cannot do this with the path %[1]q", ""},
	wire.CodeInvalidOwner:    {errs.Invalid, "invalid_owner", "%[2]s", "give NAME or UID, optionally :GROUP, of the guest"},
	wire.CodeInvalidArchive:  {errs.Invalid, "invalid_archive", "%[2]s", ""},
	wire.CodeTooManyWatches:  {errs.Exhausted, "too_many_watches", "%[1]q is too much to watch: %[2]s", "watch less, or raise the limits in the guest"},
	wire.CodePermission:      {errs.Forbidden, "guest_refused", "the guest refuses this for %[1]q: %[2]s", ""},
}

// fileFailure is what an operation on a file ended with, for the one who asked.
// What the asker's own reader, writer or function ended with is given back.
func fileFailure(path string, err error) error {
	var local *wire.LocalError
	if errors.As(err, &local) {
		return local.Err
	}
	return failure(err, func(answer *wire.RemoteError) error {
		f, ok := fileFailures[answer.Code]
		if !ok {
			f = fileFailures[wire.CodePermission]
		}
		reason := printable(answer.Message, maxReason)
		e := errs.New(f.kind, f.code, f.sentence, path[:min(len(path), maxShownPath)], reason).WithCause(err)
		if f.hint == "" {
			return e
		}
		return e.WithHint("%s", f.hint)
	})
}
