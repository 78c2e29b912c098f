package files

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// ReadFile implements wire.FileHandler. It sends as many bytes as the file has when it
// is opened.
func (f *Files) ReadFile(_ context.Context, args wire.ReadFileArgs, began func(wire.FileInfo) error, w wire.FileWriter) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	file, st, err := openRegular(path)
	if err != nil {
		return wireError(err)
	}
	defer func() { _ = file.Close() }()
	info := f.describer().info(st)
	info.Path = args.Path
	if isGenerated(int(file.Fd())) {
		info.Size = wire.UnknownSize
	}
	if err := began(info); err != nil {
		return err
	}
	return send(file, args, info.Size, w)
}

func send(file *os.File, args wire.ReadFileArgs, size int64, w wire.FileWriter) error {
	if _, err := file.Seek(args.Start(size), io.SeekStart); err != nil {
		return wireError(err)
	}
	wanted := args.Expected(size)
	content := io.Reader(file)
	if wanted >= 0 {
		content = io.LimitReader(file, wanted)
	} else if args.Length >= 0 {
		content = io.LimitReader(file, args.Length)
	}
	sent, err := w.ReadFrom(content)
	if err != nil {
		return wireError(err)
	}
	if wanted >= 0 && sent < wanted {
		return wire.Refuse(wire.CodeChanged, "the file became shorter during the read")
	}
	return nil
}

// openRegular opens a regular file for reading, and follows links. It does not open
// other files: opening a device may have side effects.
func openRegular(path string) (*os.File, *unix.Stat_t, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	switch kind(st.Mode) {
	case wire.KindFile:
	case wire.KindDirectory:
		return nil, nil, unix.EISDIR
	default:
		return nil, nil, errNotFile
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	return file, &st, err
}

var errNotFile = wire.Refuse(wire.CodeNotFile, "the file is a device, a pipe or a socket")

// generatedTypes are the file systems for which the kernel generates a file's content
// during the read, so that the file's size is meaningless.
var generatedTypes = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
	unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC,
	unix.EFIVARFS_MAGIC, unix.BINFMTFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.NSFS_MAGIC, unix.AUTOFS_SUPER_MAGIC,
	0x62656570, // configfs
	0x19800202, // mqueue
	0x65735543, // fusectl
	0x67596969, // rpc_pipefs
}

// isGenerated reports whether an open file is on such a file system.
func isGenerated(fd int) bool {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return err == nil && slices.Contains(generatedTypes, st.Type)
}
