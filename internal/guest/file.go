package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// files implements [file.Guest].
type files struct{ agent *connection }

// ReadFile implements [file.Reader].
func (f files) ReadFile(ctx context.Context, spec file.ReadSpec) (file.Info, io.ReadCloser, error) {
	client, err := f.agent.wait(ctx)
	if err != nil {
		return file.Info{}, nil, err
	}
	args := wire.ReadFileArgs{Path: []byte(spec.Path), Offset: spec.Offset, Length: spec.Length}
	given, content, err := client.ReadFile(ctx, args)
	if err != nil {
		return file.Info{}, nil, fileError(spec.Path, err)
	}
	unknown := given.Size == wire.UnknownSize
	if unknown {
		given.Size = 0
	}
	info, err := fileInfo(spec.Path, given)
	if err != nil {
		_ = content.Close()
		return file.Info{}, nil, err
	}
	if unknown {
		info.Size = -1
	}
	return info, &fileContent{path: spec.Path, content: content}, nil
}

// fileContent translates the errors of a content stream.
type fileContent struct {
	path    string
	content *wire.FileContent
}

func (c *fileContent) Read(p []byte) (int, error) {
	n, err := c.content.Read(p)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, fileError(c.path, err)
}

// WriteTo implements [io.WriterTo], which [io.Copy] prefers.
func (c *fileContent) WriteTo(w io.Writer) (int64, error) {
	n, err := c.content.WriteTo(w)
	return n, fileError(c.path, err)
}

func (c *fileContent) Close() error { return c.content.Close() }

// WriteFile implements [file.Writer].
func (f files) WriteFile(ctx context.Context, spec file.WriteSpec, content io.Reader) (file.Info, error) {
	args := wire.WriteFileArgs{
		Path: []byte(spec.Path), Mode: spec.Mode, Owner: (*string)(spec.Owner), Parents: spec.Parents, If: fileCondition(spec.If),
	}
	return f.requestInfo(ctx, spec.Path, func(client *wire.Client) (wire.FileInfo, error) {
		return client.WriteFile(ctx, args, content)
	})
}

// StatFile implements [file.Reader].
func (f files) StatFile(ctx context.Context, path string) (file.Info, error) {
	return f.requestInfo(ctx, path, func(client *wire.Client) (wire.FileInfo, error) {
		return client.StatFile(ctx, wire.PathArgs{Path: []byte(path)})
	})
}

// MakeDirectory implements [file.Writer].
func (f files) MakeDirectory(ctx context.Context, path string, mode uint32, owner file.Owner, parents bool) (file.Info, error) {
	args := wire.MakeDirectoryArgs{Path: []byte(path), Mode: mode, Owner: string(owner), Parents: parents}
	return f.requestInfo(ctx, path, func(client *wire.Client) (wire.FileInfo, error) {
		return client.MakeDirectory(ctx, args)
	})
}

// RenameFile implements [file.Writer].
func (f files) RenameFile(ctx context.Context, from, to string) (file.Info, error) {
	client, err := f.agent.wait(ctx)
	if err != nil {
		return file.Info{}, err
	}
	given, err := client.RenameFile(ctx, wire.RenameFileArgs{From: []byte(from), To: []byte(to)})
	if err != nil {
		return file.Info{}, fileError(from, err)
	}
	return fileInfo(to, given)
}

// requestInfo makes a request that the agent answers with the info of the file at path.
func (f files) requestInfo(ctx context.Context, path string, do func(*wire.Client) (wire.FileInfo, error)) (file.Info, error) {
	client, err := f.agent.wait(ctx)
	if err != nil {
		return file.Info{}, err
	}
	given, err := do(client)
	if err != nil {
		return file.Info{}, fileError(path, err)
	}
	return fileInfo(path, given)
}

// RemoveFile implements [file.Writer].
func (f files) RemoveFile(ctx context.Context, spec file.RemoveSpec) error {
	return f.request(ctx, spec.Path, func(client *wire.Client) error {
		return client.RemoveFile(ctx, wire.RemoveFileArgs{Path: []byte(spec.Path), Recursive: spec.Recursive, If: fileCondition(spec.If)})
	})
}

func fileCondition(c *file.Condition) *wire.FileCondition {
	if c == nil {
		return nil
	}
	out := &wire.FileCondition{Match: fileVersions(c.Match), NoneMatch: fileVersions(c.NoneMatch)}
	if c.NotAfter != nil {
		out.NotAfter = new(c.NotAfter.Unix())
	}
	return out
}

func fileVersions(all *file.Versions) *wire.FileVersions {
	if all == nil {
		return nil
	}
	out := &wire.FileVersions{Any: all.Any}
	for _, v := range all.List {
		out.List = append(out.List, wire.FileVersion(v))
	}
	return out
}

// ListFiles implements [file.Reader].
func (f files) ListFiles(ctx context.Context, path string, each func(file.Info) error) error {
	last := ""
	return f.request(ctx, path, func(client *wire.Client) error {
		return client.ListFiles(ctx, wire.PathArgs{Path: []byte(path)}, func(given wire.FileInfo) error {
			name := string(given.Path)
			valid := name != "" && name != "." && name != ".." && len(name) <= maxFileName && !strings.ContainsAny(name, "/\x00")
			if !valid || name <= last {
				return invalidReply("a file name that is invalid or out of order")
			}
			last = name
			info, err := fileInfo(strings.TrimRight(path, "/")+"/"+name, given)
			if err != nil {
				return err
			}
			return each(info)
		})
	})
}

// ReadTree implements [file.Reader].
func (f files) ReadTree(ctx context.Context, path string) (io.ReadCloser, error) {
	client, err := f.agent.wait(ctx)
	if err != nil {
		return nil, err
	}
	content, err := client.ReadTree(ctx, wire.PathArgs{Path: []byte(path)})
	if err != nil {
		return nil, fileError(path, err)
	}
	return &fileContent{path: path, content: content}, nil
}

// WriteTree implements [file.Writer].
func (f files) WriteTree(ctx context.Context, spec file.TreeSpec, archive io.Reader) error {
	return f.request(ctx, spec.Path, func(client *wire.Client) error {
		return client.WriteTree(ctx, wire.WriteTreeArgs{Path: []byte(spec.Path), Owner: (*string)(spec.Owner)}, archive)
	})
}

// WatchFiles implements [file.Follower].
func (f files) WatchFiles(ctx context.Context, path string, recursive bool, began func(), report func(file.Change) error) error {
	return f.request(ctx, path, func(client *wire.Client) error {
		return client.WatchFiles(ctx, wire.WatchFilesArgs{Path: []byte(path), Recursive: recursive}, began, func(given wire.FileChange) error {
			c, err := fileChange(path, given)
			if err != nil {
				return err
			}
			return report(c)
		})
	})
}

// TailFile implements [file.Follower].
func (f files) TailFile(ctx context.Context, path string, lines int, follow bool, w io.Writer) error {
	return f.request(ctx, path, func(client *wire.Client) error {
		return client.TailFile(ctx, wire.TailFileArgs{Path: []byte(path), Lines: int64(lines), Follow: follow}, w)
	})
}

func (f files) request(ctx context.Context, path string, do func(*wire.Client) error) error {
	client, err := f.agent.wait(ctx)
	if err != nil {
		return err
	}
	return fileError(path, do(client))
}

// Limits of the strings in an agent's info of a file, in bytes.
const (
	maxFileName = 255
	maxPath     = 4096
	maxUserName = 64
)

// fileInfo validates an agent's info of the file at path, and makes it printable.
func fileInfo(path string, given wire.FileInfo) (file.Info, error) {
	const maxID = 1<<32 - 1
	switch {
	case given.Size < 0, given.Mode > 0o7777, len(given.Target) > maxPath,
		given.UID < 0, given.UID > maxID, given.GID < 0, given.GID > maxID:
		return file.Info{}, invalidReply(fmt.Sprintf("a file with size %d, mode %o, owner %d:%d and a target of %d bytes",
			given.Size, given.Mode, given.UID, given.GID, len(given.Target)))
	}
	info := file.Info{
		Path: path, Kind: file.Other, Size: given.Size, Mode: given.Mode, UID: int(given.UID), GID: int(given.GID),
		User: printable(string(given.User), maxUserName), Group: printable(string(given.Group), maxUserName),
		ModifiedAt: guestTime(given.Seconds, given.Nanos), Target: string(given.Target),
	}
	switch kind := file.Kind(given.Kind); kind {
	case file.Regular, file.Directory, file.Symlink:
		info.Kind = kind
	}
	return info, nil
}

// Range of times that RFC 3339 can express, in seconds since 1970.
const (
	firstSecond = -62135596800 // of the year 1
	lastSecond  = 253402300799 // of the year 9999
)

// guestTime returns a time of the guest. It clamps times that RFC 3339 cannot express: a
// file may have any time.
func guestTime(seconds, nanos int64) time.Time {
	return time.Unix(min(max(seconds, firstSecond), lastSecond), min(max(nanos, 0), 999_999_999))
}

// fileChange validates a change that an agent reports for a watch of top.
func fileChange(top string, given wire.FileChange) (file.Change, error) {
	c := file.Change{
		Kind: file.ChangeKind(given.Kind), Path: string(given.Path), From: string(given.From),
		At: guestTime(given.Seconds, given.Nanos),
	}
	switch c.Kind {
	case file.Created, file.Written, file.Removed, file.Changed, file.Missed:
		c.From = ""
	case file.Renamed:
		if !isBelow(top, c.From) {
			return c, invalidReply("a rename of a file that is not watched")
		}
	default:
		return c, invalidReply("a change of an unknown kind")
	}
	if !isBelow(top, c.Path) {
		return c, invalidReply("a change of a file that is not watched")
	}
	return c, nil
}

// isBelow reports whether path is top or below it.
func isBelow(top, path string) bool {
	top = strings.TrimRight(top, "/")
	below, ok := strings.CutPrefix(path, top)
	return ok && path != "" && len(path) <= 2*maxPath && (below == "" || below[0] == '/') && !strings.Contains(path, "\x00")
}
