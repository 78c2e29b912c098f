package files

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// codes are the protocol's codes of system errors. All others have the code failed.
var codes = map[unix.Errno]string{
	unix.ENOENT:       wire.CodeNotFound,
	unix.EEXIST:       wire.CodeExists,
	unix.EISDIR:       wire.CodeIsDirectory,
	unix.ENOTDIR:      wire.CodeNotDirectory,
	unix.ENOTEMPTY:    wire.CodeNotEmpty,
	unix.ENOSPC:       wire.CodeDiskFull,
	unix.EDQUOT:       wire.CodeDiskFull,
	unix.EFBIG:        wire.CodeTooLarge,
	unix.EXDEV:        wire.CodeOtherFilesystem,
	unix.ENAMETOOLONG: wire.CodeInvalidPath,
	unix.ELOOP:        wire.CodeInvalidPath,
	unix.EINVAL:       wire.CodeInvalidPath,
	unix.EPERM:        wire.CodePermission,
	unix.EACCES:       wire.CodePermission,
	unix.EROFS:        wire.CodePermission,
	unix.EBUSY:        wire.CodePermission,
	unix.ETXTBSY:      wire.CodePermission,
}

// wireError returns err with a code of the protocol.
func wireError(err error) error {
	var refused *wire.RemoteError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err
	}
	code, ok := codes[errno]
	if !ok {
		code = wire.CodeFailed
	}
	return wire.Refuse(code, "%s", errno.Error())
}
