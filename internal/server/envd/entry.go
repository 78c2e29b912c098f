package envd

import (
	"context"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/file"
)

// entry describes a file. Of a link it has the type, the size and the mode of the file
// that the link leads to.
type entry struct {
	Name          string     `json:"name"`
	Type          string     `json:"type"`
	Path          string     `json:"path"`
	Size          int64      `json:"size,omitempty,string"`
	Mode          uint32     `json:"mode,omitempty"` // permission bits
	Permissions   string     `json:"permissions,omitempty"`
	Owner         string     `json:"owner,omitempty"`
	Group         string     `json:"group,omitempty"`
	ModifiedTime  *time.Time `json:"modifiedTime,omitempty"`
	SymlinkTarget string     `json:"symlinkTarget,omitempty"`
}

// oldClient is the User-Agent of clients that fail on fields which they do not know.
const oldClient = "connect-python"

var types = map[file.Kind]string{
	file.Regular: "FILE_TYPE_FILE", file.Directory: "FILE_TYPE_DIRECTORY", file.Symlink: "FILE_TYPE_SYMLINK", file.Other: "FILE_TYPE_UNSPECIFIED",
}

// entryOf describes a file as the call's client understands it.
func (e *Envd) entryOf(ctx context.Context, c call, info file.Info) entry {
	at := path.Clean(info.Path)
	final, target := info, ""
	if info.Kind == file.Symlink {
		final, target = e.followLinks(ctx, c, info)
	}
	described := entry{Name: path.Base(at), Type: types[final.Kind], Path: at}
	if c.strict {
		return described
	}
	described.Size, described.Mode, described.Permissions = final.Size, final.Mode&0o777, modeOf(final).String()
	described.Owner, described.Group = nameOr(final.User, final.UID), nameOr(final.Group, final.GID)
	modified := final.ModifiedAt.UTC()
	described.ModifiedTime, described.SymlinkTarget = &modified, target
	return described
}

func nameOr(name string, id int) string {
	if name == "" {
		return strconv.Itoa(id)
	}
	return name
}

// modeOf returns the mode of a file as Go writes it.
func modeOf(info file.Info) fs.FileMode {
	mode := fs.FileMode(info.Mode & 0o777)
	for bit, special := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if info.Mode&bit != 0 {
			mode |= special
		}
	}
	switch info.Kind {
	case file.Directory:
		mode |= fs.ModeDir
	case file.Symlink:
		mode |= fs.ModeSymlink
	case file.Other:
		mode |= fs.ModeIrregular
	}
	return mode
}

// maxLinks is how many links are followed, as in Linux.
const maxLinks = 40

// followLinks returns the file that a link leads to, and its path. Of a link that leads
// to no file it returns the last link.
func (e *Envd) followLinks(ctx context.Context, c call, link file.Info) (final file.Info, target string) {
	final = link
	for range maxLinks {
		next := final.Target
		if !path.IsAbs(next) { // not cleaned: the guest resolves .. after links
			next = final.Path[:strings.LastIndexByte(final.Path, '/')+1] + next
		}
		target = path.Clean(next)
		found, err := e.cfg.Files.Stat(ctx, c.scope, c.VMID, next)
		if err != nil {
			break
		}
		if final = found; final.Kind != file.Symlink {
			break
		}
	}
	return final, target
}
