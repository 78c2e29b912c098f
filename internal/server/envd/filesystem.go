package envd

import (
	"context"
	"path"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// The messages of files.
type (
	pathRequest struct {
		Path string `json:"path"`
	}
	listRequest struct {
		Path  string `json:"path"`
		Depth number `json:"depth"`
	}
	moveRequest struct {
		Source      string `json:"source"`
		Destination string `json:"destination"`
	}
	entryAnswer struct {
		Entry entry `json:"entry"`
	}
	listDirAnswer struct {
		Entries []entry `json:"entries"`
	}
)

// newDirMode is the mode of new directories.
const newDirMode = 0o755

// stat describes a file.
func (e *Envd) stat(ctx context.Context, c call, req *pathRequest) (any, error) {
	at, err := e.resolve(ctx, c, req.Path)
	if err != nil {
		return nil, err
	}
	info, err := e.cfg.Files.Stat(ctx, c.scope, c.VMID, at)
	if err != nil {
		return nil, err
	}
	return entryAnswer{e.entryOf(ctx, c, info)}, nil
}

// Limits of what one call lists.
const (
	maxEntries   = 100_000
	maxPathBytes = 16 << 20
)

// listing is what a call has listed so far.
type listing struct {
	files []file.Info
	bytes int // of their paths
}

func (l *listing) add(info file.Info) error {
	l.files = append(l.files, info)
	if l.bytes += len(info.Path) + len(info.Target); len(l.files) > maxEntries || l.bytes > maxPathBytes {
		return connect.Errorf(connect.ResourceExhausted, "the directory has more than %d entries, or very long names: list it in parts", maxEntries)
	}
	return nil
}

// listDir lists a directory, and those in it up to a depth.
func (e *Envd) listDir(ctx context.Context, c call, req *listRequest) (any, error) {
	top, err := e.resolve(ctx, c, req.Path)
	if err != nil {
		return nil, err
	}
	var all listing
	if err := e.listTo(ctx, c, top, max(1, req.Depth), &all); err != nil {
		return nil, err
	}
	answer := listDirAnswer{Entries: make([]entry, 0, len(all.files))}
	for _, info := range all.files {
		answer.Entries = append(answer.Entries, e.entryOf(ctx, c, info))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return answer, nil
}

// listTo adds the entries of a directory, each followed by what is in it. It leaves out
// directories that are removed meanwhile.
func (e *Envd) listTo(ctx context.Context, c call, dir string, depth number, all *listing) error {
	if depth <= 1 {
		return e.cfg.Files.List(ctx, c.scope, c.VMID, dir, all.add)
	}
	var here listing
	if err := e.cfg.Files.List(ctx, c.scope, c.VMID, dir, here.add); err != nil {
		return err
	}
	for _, info := range here.files {
		if err := all.add(info); err != nil {
			return err
		}
		if info.Kind != file.Directory {
			continue
		}
		err := e.listTo(ctx, c, info.Path, depth-1, all)
		if err != nil && !errs.HasCode(err, "file_not_found") && !errs.HasCode(err, "not_a_directory") {
			return err
		}
	}
	return nil
}

// makeDir makes a directory, and missing ones above it.
func (e *Envd) makeDir(ctx context.Context, c call, req *pathRequest) (any, error) {
	at, err := e.resolve(ctx, c, req.Path)
	if err != nil {
		return nil, err
	}
	exists, err := e.isDirectory(ctx, c, at)
	switch {
	case err == nil && exists:
		return nil, connect.Errorf(connect.AlreadyExists, "the directory '%s' exists already", errs.Brief(at))
	case err == nil:
		return nil, connect.Errorf(connect.InvalidArgument, "'%s' exists, and is not a directory", errs.Brief(at))
	case !errs.HasCode(err, "file_not_found"):
		return nil, err
	}
	info, err := e.cfg.Files.MakeDirectory(ctx, c.scope, c.VMID, c.directory(at))
	if err != nil {
		return nil, err
	}
	return entryAnswer{e.entryOf(ctx, c, info)}, nil
}

// directory describes a new directory of the call's user.
func (c call) directory(at string) file.DirectorySpec {
	return file.DirectorySpec{Path: at, Mode: newDirMode, Owner: file.Owner(c.account()), Parents: true}
}

// isDirectory reports whether a path, or the link at it, leads to a directory.
func (e *Envd) isDirectory(ctx context.Context, c call, at string) (bool, error) {
	info, err := e.cfg.Files.Stat(ctx, c.scope, c.VMID, at)
	if err == nil && info.Kind == file.Symlink {
		info, _ = e.followLinks(ctx, c, info)
	}
	return info.Kind == file.Directory, err
}

// move renames a file or directory, and makes missing directories above its new path.
func (e *Envd) move(ctx context.Context, c call, req *moveRequest) (any, error) {
	from, err := e.resolve(ctx, c, req.Source)
	if err != nil {
		return nil, err
	}
	to, err := e.resolve(ctx, c, req.Destination)
	if err != nil {
		return nil, err
	}
	info, err := e.cfg.Files.Rename(ctx, c.scope, c.VMID, from, to)
	if errs.HasCode(err, "file_not_found") {
		if _, missing := e.cfg.Files.Stat(ctx, c.scope, c.VMID, from); missing != nil {
			return nil, missing
		}
		if _, err := e.cfg.Files.MakeDirectory(ctx, c.scope, c.VMID, c.directory(path.Dir(to))); err != nil {
			return nil, err
		}
		info, err = e.cfg.Files.Rename(ctx, c.scope, c.VMID, from, to)
	}
	if err != nil {
		return nil, err
	}
	return entryAnswer{e.entryOf(ctx, c, info)}, nil
}

// remove removes a file or a tree. One that does not exist is no error.
func (e *Envd) remove(ctx context.Context, c call, req *pathRequest) (any, error) {
	at, err := e.resolve(ctx, c, req.Path)
	if err != nil {
		return nil, err
	}
	err = e.cfg.Files.Remove(ctx, c.scope, c.VMID, file.RemoveSpec{Path: at, Recursive: true})
	if err != nil && !errs.HasCode(err, "file_not_found") {
		return nil, err
	}
	return empty{}, nil
}
