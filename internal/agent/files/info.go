package files

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/account"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// permissions are the bits of a mode that can be set.
const permissions = 0o7777

// ids are the UID and GID of an owner.
type ids struct{ user, group uint32 }

// owner returns the ids of a named owner.
func (f *Files) owner(name string) (ids, error) {
	a, err := account.Find(f.root, name)
	if err != nil {
		return ids{}, wire.Refuse(wire.CodeInvalidOwner, "%s", err.Error())
	}
	return ids{a.UID, a.GID}, nil
}

// describer describes files, and caches the names of users and groups.
type describer struct {
	root          string
	users, groups map[uint32]string
}

func (f *Files) describer() *describer { return &describer{root: f.root} }

// at describes the file at a path relative to a directory. It does not follow a link,
// and does not set Path.
func (d *describer) at(dir int, path string) (wire.FileInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wire.FileInfo{}, err
	}
	info := d.info(&st)
	if info.Kind == wire.KindSymlink {
		target, err := readLink(dir, path)
		if err != nil {
			return info, err
		}
		info.Target = []byte(target)
	}
	return info, nil
}

func (d *describer) info(st *unix.Stat_t) wire.FileInfo {
	if d.users == nil {
		d.users, d.groups = idNames(d.root, "passwd"), idNames(d.root, "group")
	}
	return wire.FileInfo{
		Kind: kind(st.Mode), Size: st.Size, Mode: st.Mode & permissions,
		UID: int64(st.Uid), GID: int64(st.Gid), User: []byte(d.users[st.Uid]), Group: []byte(d.groups[st.Gid]),
		Seconds: st.Mtim.Sec, Nanos: st.Mtim.Nsec,
	}
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return wire.KindFile
	case unix.S_IFDIR:
		return wire.KindDirectory
	case unix.S_IFLNK:
		return wire.KindSymlink
	default:
		return wire.KindOther
	}
}

// readLink returns the target of a link.
func readLink(dir int, path string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, path, buf)
	return string(buf[:max(0, n)]), err
}

// Limits of the names of users and groups, in bytes.
const (
	maxNames = 4 << 20 // of a file
	maxName  = 64
)

// idNames returns the names in /etc/passwd or /etc/group by id. If several have the same
// id, it returns the first.
func idNames(root, file string) map[uint32]string {
	names := map[uint32]string{}
	f, err := os.Open(filepath.Join(root, "etc", file))
	if err != nil {
		return names
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxNames))
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 3 || len(fields[0]) > maxName {
			continue
		}
		id, err := strconv.ParseUint(fields[2], 10, 32)
		if _, known := names[uint32(id)]; err == nil && !known {
			names[uint32(id)] = fields[0]
		}
	}
	return names
}
