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

var _ file.Guest = (*session)(nil)

// ReadFile implements [file.Guest].
func (s *session) ReadFile(ctx context.Context, spec file.ReadSpec) (file.Info, io.ReadCloser, error) {
	agent, err := s.agent(ctx)
	if err != nil {
		return file.Info{}, nil, err
	}
	args := wire.ReadFileArgs{Path: []byte(spec.Path), Offset: spec.Offset, Length: spec.Length}
	given, content, err := agent.ReadFile(ctx, args)
	if err != nil {
		return file.Info{}, nil, fileFailure(spec.Path, err)
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

// fileContent is a content whose errors are for the one who reads it.
type fileContent struct {
	path    string
	content *wire.FileContent
}

func (c *fileContent) Read(p []byte) (int, error) {
	n, err := c.content.Read(p)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, fileFailure(c.path, err)
}

// WriteTo implements [io.WriterTo], which [io.Copy] prefers.
func (c *fileContent) WriteTo(w io.Writer) (int64, error) {
	n, err := c.content.WriteTo(w)
	return n, fileFailure(c.path, err)
}

func (c *fileContent) Close() error { return c.content.Close() }

// WriteFile implements [file.Guest].
func (s *session) WriteFile(ctx context.Context, spec file.WriteSpec, content io.Reader) (file.Info, error) {
	args := wire.WriteFileArgs{Path: []byte(spec.Path), Mode: spec.Mode, Owner: (*string)(spec.Owner), Parents: spec.Parents}
	return s.fileInfo(ctx, spec.Path, func(agent *wire.Client) (wire.FileInfo, error) {
		return agent.WriteFile(ctx, args, content)
	})
}

// StatFile implements [file.Guest].
func (s *session) StatFile(ctx context.Context, path string) (file.Info, error) {
	return s.fileInfo(ctx, path, func(agent *wire.Client) (wire.FileInfo, error) {
		return agent.StatFile(ctx, wire.PathArgs{Path: []byte(path)})
	})
}

// MakeDirectory implements [file.Guest].
func (s *session) MakeDirectory(ctx context.Context, path string, mode uint32, owner file.Owner, parents bool) (file.Info, error) {
	args := wire.MakeDirectoryArgs{Path: []byte(path), Mode: mode, Owner: string(owner), Parents: parents}
	return s.fileInfo(ctx, path, func(agent *wire.Client) (wire.FileInfo, error) {
		return agent.MakeDirectory(ctx, args)
	})
}

// RenameFile implements [file.Guest].
func (s *session) RenameFile(ctx context.Context, from, to string) (file.Info, error) {
	agent, err := s.agent(ctx)
	if err != nil {
		return file.Info{}, err
	}
	given, err := agent.RenameFile(ctx, wire.RenameFileArgs{From: []byte(from), To: []byte(to)})
	if err != nil {
		return file.Info{}, fileFailure(from, err)
	}
	return fileInfo(to, given)
}

// fileInfo asks the agent and checks what it answers.
func (s *session) fileInfo(ctx context.Context, path string, ask func(*wire.Client) (wire.FileInfo, error)) (file.Info, error) {
	agent, err := s.agent(ctx)
	if err != nil {
		return file.Info{}, err
	}
	given, err := ask(agent)
	if err != nil {
		return file.Info{}, fileFailure(path, err)
	}
	return fileInfo(path, given)
}

// RemoveFile implements [file.Guest].
func (s *session) RemoveFile(ctx context.Context, path string, recursive bool) error {
	return s.onFile(ctx, path, func(agent *wire.Client) error {
		return agent.RemoveFile(ctx, wire.RemoveFileArgs{Path: []byte(path), Recursive: recursive})
	})
}

// ListFiles implements [file.Guest].
func (s *session) ListFiles(ctx context.Context, path string, each func(file.Info) error) error {
	last := ""
	return s.onFile(ctx, path, func(agent *wire.Client) error {
		return agent.ListFiles(ctx, wire.PathArgs{Path: []byte(path)}, func(given wire.FileInfo) error {
			name := string(given.Path)
			if !isName(name) || name <= last {
				return nonsense("a name that no directory has, or not in its order")
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

// ReadTree implements [file.Guest].
func (s *session) ReadTree(ctx context.Context, path string) (io.ReadCloser, error) {
	agent, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	content, err := agent.ReadTree(ctx, wire.PathArgs{Path: []byte(path)})
	if err != nil {
		return nil, fileFailure(path, err)
	}
	return &fileContent{path: path, content: content}, nil
}

// WriteTree implements [file.Guest].
func (s *session) WriteTree(ctx context.Context, spec file.TreeSpec, archive io.Reader) error {
	return s.onFile(ctx, spec.Path, func(agent *wire.Client) error {
		return agent.WriteTree(ctx, wire.WriteTreeArgs{Path: []byte(spec.Path), Owner: (*string)(spec.Owner)}, archive)
	})
}

// WatchFiles implements [file.Guest].
func (s *session) WatchFiles(ctx context.Context, path string, recursive bool, began func(), report func(file.Change) error) error {
	return s.onFile(ctx, path, func(agent *wire.Client) error {
		return agent.WatchFiles(ctx, wire.WatchFilesArgs{Path: []byte(path), Recursive: recursive}, began, func(given wire.FileChange) error {
			c, err := fileChange(path, given)
			if err != nil {
				return err
			}
			return report(c)
		})
	})
}

// TailFile implements [file.Guest].
func (s *session) TailFile(ctx context.Context, path string, lines int, follow bool, w io.Writer) error {
	return s.onFile(ctx, path, func(agent *wire.Client) error {
		return agent.TailFile(ctx, wire.TailFileArgs{Path: []byte(path), Lines: int64(lines), Follow: follow}, w)
	})
}

func (s *session) onFile(ctx context.Context, path string, ask func(*wire.Client) error) error {
	agent, err := s.agent(ctx)
	if err != nil {
		return err
	}
	return fileFailure(path, ask(agent))
}

// Bounds of what a guest says of a file, in bytes.
const (
	maxFileName = 255
	maxPath     = 4096
	maxUserName = 64
)

func isName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxFileName && !strings.ContainsAny(name, "/\x00")
}

// nonsense is for what no agent of ours says.
func nonsense(what string) error {
	return unavailable("the agent in the guest answers what makes no sense").WithCause(errors.New(what))
}

// fileInfo takes what a guest says of the file at path.
func fileInfo(path string, given wire.FileInfo) (file.Info, error) {
	const maxID = 1<<32 - 1
	switch {
	case given.Size < 0, given.Mode > 0o7777, len(given.Target) > maxPath,
		given.UID < 0, given.UID > maxID, given.GID < 0, given.GID > maxID:
		return file.Info{}, nonsense(fmt.Sprintf("a file with size %d, mode %o, owner %d:%d, and a target of %d bytes",
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

// Times that can be written as text, in seconds since 1970.
const (
	firstSecond = -62135596800 // of the year 1
	lastSecond  = 253402300799 // of the year 9999
)

// guestTime is a time in the guest. A file may be of any age, also in the far
// future: then it is of the last year that can be written.
func guestTime(seconds, nanos int64) time.Time {
	return time.Unix(min(max(seconds, firstSecond), lastSecond), min(max(nanos, 0), 999_999_999))
}

// fileChange takes a change that a guest reports of what is watched at top.
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
			return c, nonsense("a rename of what was not watched")
		}
	default:
		return c, nonsense("a change of an unknown kind")
	}
	if !isBelow(top, c.Path) {
		return c, nonsense("a change of what was not watched")
	}
	return c, nil
}

// isBelow reports whether path is top or lies below it.
func isBelow(top, path string) bool {
	top = strings.TrimRight(top, "/")
	below, ok := strings.CutPrefix(path, top)
	return ok && path != "" && len(path) <= 2*maxPath && (below == "" || below[0] == '/') && !strings.Contains(path, "\x00")
}
