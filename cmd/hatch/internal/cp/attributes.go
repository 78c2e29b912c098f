package cp

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

// maxAttributes limits the attributes of one file, in bytes: readers of archives limit
// the records of a file to 1 MiB.
const maxAttributes = 512 << 10

// isCopied reports whether an attribute is copied. Others mean something to one host or
// one file system only, such as a label of SELinux.
func isCopied(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// attributesIn returns the attributes of an entry, by name.
func attributesIn(header *tar.Header) map[string]string {
	attributes := map[string]string{}
	for key, value := range header.PAXRecords {
		if name, ok := strings.CutPrefix(key, attributePrefix); ok && isCopied(name) {
			attributes[name] = value
		}
	}
	return attributes
}

// attributesOf returns the attributes of an open file of this machine, as records of an
// archive. A file system without attributes has none.
func attributesOf(file *os.File) (map[string]string, error) {
	names := make([]byte, 64<<10) // Linux's limit
	n, err := unix.Flistxattr(int(file.Fd()), names)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	records := map[string]string{}
	value, left := make([]byte, 64<<10), maxAttributes // likewise
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !isCopied(name) || strings.Contains(name, "=") { // which an archive cannot have
			continue
		}
		size, err := unix.Fgetxattr(int(file.Fd()), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if left -= len(name) + size; left < 0 {
			return nil, errors.New("its extended attributes are too large for an archive")
		}
		records[attributePrefix+name] = string(value[:size])
	}
	return records, nil
}

// setAttributes sets attributes of a file or directory that the unpacker created, and
// reports those that this machine cannot keep.
func (u *unpacker) setAttributes(name, shown string, attributes map[string]string) error {
	if len(attributes) == 0 {
		return nil
	}
	file, err := u.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	for attribute, value := range attributes {
		if err := unix.Fsetxattr(int(file.Fd()), attribute, []byte(value), 0); err != nil {
			u.skipped.add(shown, "only its attribute "+attribute+": "+err.Error())
		}
	}
	return nil
}
