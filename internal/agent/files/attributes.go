package files

import (
	"archive/tar"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributePrefix and the name of an extended attribute are a key of an archive's
// records, as in GNU tar, libarchive and docker.
const attributePrefix = "SCHILY.xattr."

// capability is the attribute with the capabilities of a program.
const capability = "security.capability"

// Limits of extended attributes, in bytes: Linux's, and a smaller one for those of one
// file together, because readers of archives limit the records of a file to 1 MiB.
const (
	maxAttribute  = 64 << 10
	maxAttributes = 512 << 10
)

// isCopied reports whether an attribute is copied. Others mean something to one system
// or one file system only, such as a label of SELinux.
func isCopied(name string) bool {
	return strings.HasPrefix(name, "user.") || name == capability ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// attributes returns the extended attributes of an open file as records of an archive.
// It leaves out what an archive cannot have.
func (p *packer) attributes(fd int) map[string]string {
	n, err := unix.Flistxattr(fd, p.attribute)
	if err != nil || n == 0 {
		return nil // most files; or a file system that has none
	}
	records, left := map[string]string{}, maxAttributes
	for name := range strings.SplitSeq(string(p.attribute[:n]), "\x00") {
		if !isCopied(name) || strings.Contains(name, "=") {
			continue
		}
		size, err := unix.Fgetxattr(fd, name, p.attribute)
		if cost := len(name) + size; err == nil && cost <= left {
			records[attributePrefix+name] = string(p.attribute[:size])
			left -= cost
		}
	}
	return records
}

// setAttributes sets the extended attributes of an entry, unless the file system has none.
// Capabilities are for the archive's owners, as a setuid bit is.
func (u *unpacker) setAttributes(file *os.File, header *tar.Header) error {
	for key, value := range header.PAXRecords {
		name, ok := strings.CutPrefix(key, attributePrefix)
		if !ok || !isCopied(name) || name == capability && u.owner != nil {
			continue
		}
		err := unix.Fsetxattr(int(file.Fd()), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}
