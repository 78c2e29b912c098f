package envd

import (
	"context"
	"net/http"
	"path"
	"strings"

	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// The messages of watches. A field with two words may be given in either spelling.
type (
	watchRequest struct {
		Path              string `json:"path"`
		Recursive         bool   `json:"recursive"`
		IncludeEntry      bool   `json:"includeEntry"`
		IncludeEntrySnake bool   `json:"include_entry"`
	}
	watchEvent struct {
		Start      *empty      `json:"start,omitempty"`
		Filesystem *fileChange `json:"filesystem,omitempty"`
		Keepalive  *empty      `json:"keepalive,omitempty"`
	}
	fileChange struct {
		Name  string `json:"name"` // relative to the watched directory
		Type  string `json:"type"`
		Entry *entry `json:"entry,omitempty"`
	}
)

// watch is a watch of one directory. Its form as JSON is part of ids of watchers.
type watch struct {
	Path      string `json:"p"`
	Recursive bool   `json:"r,omitempty"`
	Entries   bool   `json:"e,omitempty"` // events have the file's entry
}

// watchOf returns the watch that a request asks for.
func (e *Envd) watchOf(ctx context.Context, c call, req *watchRequest) (watch, error) {
	at, err := e.resolve(ctx, c, req.Path)
	if err != nil {
		return watch{}, err
	}
	isDir, err := e.isDirectory(ctx, c, at)
	if err != nil {
		return watch{}, err
	}
	if !isDir {
		return watch{}, connect.Errorf(connect.InvalidArgument, "only a directory can be watched")
	}
	return watch{Path: at, Recursive: req.Recursive, Entries: req.IncludeEntry || req.IncludeEntrySnake}, nil
}

// watchDir sends the changes in a directory.
func (e *Envd) watchDir(w http.ResponseWriter, r *http.Request, c call) {
	connect.ServerStream(w, r, watchEvent{Keepalive: &empty{}}, func(ctx context.Context, req *watchRequest, send connect.Send) error {
		wanted, err := e.watchOf(ctx, c, req)
		if err != nil {
			return e.explain(ctx, c, err)
		}
		err = e.watch(ctx, c, wanted, func() { _ = send(watchEvent{Start: &empty{}}) }, func(changed fileChange) error {
			return send(watchEvent{Filesystem: &changed})
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return e.explain(ctx, c, broken(err))
	})
}

// watch reports changes until ctx is done, report fails, or the watch ends. It calls began
// once no change can be missed.
func (e *Envd) watch(ctx context.Context, c call, wanted watch, began func(), report func(fileChange) error) error {
	return e.cfg.Files.Watch(ctx, c.scope, c.VMID, wanted.Path, wanted.Recursive, began, func(change file.Change) error {
		changes, err := wanted.changes(change)
		if err != nil {
			return err
		}
		for _, changed := range changes {
			if wanted.Entries && changed.Type != removed && changed.Type != renamed {
				if info, err := e.cfg.Files.Stat(ctx, c.scope, c.VMID, change.Path); err == nil {
					described := e.entryOf(ctx, c, info)
					changed.Entry = &described
				}
			}
			if err := report(changed); err != nil {
				return err
			}
		}
		return nil
	})
}

// The types of changes.
const (
	created = "EVENT_TYPE_CREATE"
	written = "EVENT_TYPE_WRITE"
	removed = "EVENT_TYPE_REMOVE"
	renamed = "EVENT_TYPE_RENAME"
	changed = "EVENT_TYPE_CHMOD"
)

var changeTypes = map[file.ChangeKind]string{file.Created: created, file.Written: written, file.Removed: removed, file.Changed: changed}

// partialPrefix begins the names of files that the guest's agent is writing.
const partialPrefix = ".hatch-partial-"

// changes returns a change in the words of the SDKs, for which a rename is one of the old
// name and a creation of the new one. A file that the agent writes appears as if it were
// written in its place: it is not known whether it existed before.
func (w watch) changes(c file.Change) ([]fileChange, error) {
	name := w.relative(c.Path)
	switch {
	case c.Kind == file.Missed:
		return nil, connect.Errorf(connect.DataLoss, "there were more changes than the guest can keep: list the directory again")
	case strings.HasPrefix(path.Base(c.Path), partialPrefix):
		return nil, nil
	case c.Kind == file.Renamed && strings.HasPrefix(path.Base(c.From), partialPrefix):
		return []fileChange{{Name: name, Type: created}, {Name: name, Type: written}}, nil
	case c.Kind == file.Renamed:
		return []fileChange{{Name: w.relative(c.From), Type: renamed}, {Name: name, Type: created}}, nil
	case name == "" && c.Kind != file.Removed: // of the directory itself
		return nil, nil
	}
	return []fileChange{{Name: name, Type: changeTypes[c.Kind]}}, nil
}

func (w watch) relative(at string) string {
	return strings.TrimPrefix(strings.TrimPrefix(at, strings.TrimSuffix(w.Path, "/")), "/")
}
