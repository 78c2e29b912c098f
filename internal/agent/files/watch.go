package files

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Bounds of one watch.
const (
	maxWatches = 64 << 10              // directories
	maxScanned = 64 << 10              // files of new directories that are remembered
	maxBatch   = 512                   // changes that are reported together
	gather     = 25 * time.Millisecond // for which changes are gathered
)

// watchMask is what is heard of each directory.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// errOverflow says that the kernel has dropped events.
var errOverflow = errors.New("events were lost")

// WatchFiles implements wire.FileHandler. While a report waits for the host the
// kernel queues events, and drops some in the end; what was lost is reported as
// missed, once everything is watched anew.
func (f *Files) WatchFiles(ctx context.Context, args wire.WatchFilesArgs, began func() error, report func([]wire.FileChange) error) error {
	path, err := checked(args.Path)
	if err != nil {
		return err
	}
	for {
		w, err := watch(ctx, path, args.Recursive)
		if err != nil {
			return refusal(err)
		}
		if err = began(); err == nil {
			err = w.follow(ctx, report)
		}
		w.inotify.close()
		if !errors.Is(err, errOverflow) {
			return refusal(err)
		}
		began = func() error { return report([]wire.FileChange{change(wire.ChangeMissed, path)}) }
	}
}

func change(kind, path string) wire.FileChange {
	now := time.Now()
	return wire.FileChange{Kind: kind, Path: []byte(path), Seconds: now.Unix(), Nanos: int64(now.Nanosecond())}
}

// watcher watches one path.
type watcher struct {
	*inotify
	top       string // the directory that is watched
	topID     int32
	only      string // the one file in it that counts; "" for all
	recursive bool
	dirs      map[int32]string // paths of the watched directories
	scanned   map[string]bool  // found in new directories, and perhaps still to be heard of
	batch     batch
}

// watch begins to watch a directory, or a file by way of its directory: so it
// is seen, too, when the file is replaced.
func watch(ctx context.Context, path string, recursive bool) (*watcher, error) {
	for len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	n, err := newInotify()
	if err != nil {
		return nil, err
	}
	w := &watcher{inotify: n, top: path, recursive: recursive, dirs: map[int32]string{}, scanned: map[string]bool{}}
	if !st.IsDir() {
		w.top, w.only = split(path)
		w.recursive = false
	}
	if w.topID, err = n.add(w.top, watchMask); err == nil {
		w.dirs[w.topID] = w.top
		if w.recursive {
			err = w.scan(ctx, w.top, 0, func(string) {})
		}
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return w, nil
}

// scan watches the directories below one that is watched, and calls found for
// each file there.
func (w *watcher) scan(ctx context.Context, path string, flags int, found func(path string)) error {
	dir, err := openDirectory(unix.AT_FDCWD, path, flags)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if madeUp(int(dir.Fd())) {
		return nil
	}
	return eachName(dir, namesAtOnce, func(name string) error {
		below := join(path, name)
		found(below)
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || kind(st.Mode) != wire.KindDirectory {
			return ctx.Err()
		}
		return w.addTree(ctx, below, found)
	})
}

// addTree watches a directory and all below it.
func (w *watcher) addTree(ctx context.Context, path string, found func(path string)) error {
	wd, err := w.add(path, watchMask|unix.IN_DONT_FOLLOW)
	if gone(err) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	w.dirs[wd] = path
	if len(w.dirs) > maxWatches {
		return wire.Refuse(wire.CodeTooManyWatches, "there are more than %d directories", maxWatches)
	}
	return w.scan(ctx, path, unix.O_NOFOLLOW, found)
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// follow reports changes until ctx is done or the watch cannot go on.
func (w *watcher) follow(ctx context.Context, report func([]wire.FileChange) error) error {
	stop := context.AfterFunc(ctx, w.wake)
	defer stop()
	for {
		events, err := w.read(w.batch.due, ctx.Err)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			err = nil
		}
		for _, e := range events {
			if err == nil {
				err = w.handle(ctx, e)
			}
		}
		if !w.pending() {
			clear(w.scanned)
		}
		if err != nil || w.batch.ready(time.Now()) {
			if reportErr := w.report(report); reportErr != nil {
				return reportErr
			}
		}
		if err != nil {
			return err
		}
	}
}

// report reports the batch. Directories that were moved away are not watched
// any more.
func (w *watcher) report(report func([]wire.FileChange) error) error {
	changes, away := w.batch.take()
	for _, path := range away {
		w.forget(path)
	}
	if len(changes) == 0 {
		return nil
	}
	return report(changes)
}

// handle adds what an event tells to the batch.
func (w *watcher) handle(ctx context.Context, e event) error {
	dir, known := w.dirs[e.wd]
	switch {
	case e.mask&unix.IN_Q_OVERFLOW != 0:
		return errOverflow
	case !known:
		return nil
	case e.mask&unix.IN_IGNORED != 0:
		delete(w.dirs, e.wd)
	}
	if e.name == "" {
		return w.handleSelf(e)
	}
	if w.only != "" && e.name != w.only {
		return nil
	}
	return w.handleEntry(ctx, e, join(dir, e.name))
}

// handleSelf handles what happens to a watched directory itself. Only of the
// topmost it is news.
func (w *watcher) handleSelf(e event) error {
	path := w.top
	if w.only != "" {
		path = join(w.top, w.only)
	}
	switch {
	case e.wd != w.topID:
	case e.mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
		w.batch.add(change(wire.ChangeRemove, path))
		return wire.Refuse(wire.CodeNotFound, "what was watched is not there any more")
	case e.mask&unix.IN_ATTRIB != 0 && w.only == "":
		w.batch.add(change(wire.ChangeMode, path))
	}
	return nil
}

func (w *watcher) handleEntry(ctx context.Context, e event, path string) error {
	isDir := e.mask&unix.IN_ISDIR != 0
	switch {
	case e.mask&unix.IN_CREATE != 0:
		return w.created(ctx, path, isDir)
	case e.mask&unix.IN_DELETE != 0:
		w.batch.add(change(wire.ChangeRemove, path))
	case e.mask&unix.IN_MODIFY != 0:
		w.batch.add(change(wire.ChangeWrite, path))
	case e.mask&unix.IN_ATTRIB != 0:
		w.batch.add(change(wire.ChangeMode, path))
	case e.mask&unix.IN_MOVED_FROM != 0:
		w.batch.leave(change(wire.ChangeRemove, path), e.cookie, isDir)
	case e.mask&unix.IN_MOVED_TO != 0:
		if from, ok := w.batch.arrive(path, e.cookie); ok {
			w.renamed(from, path)
			return nil
		}
		return w.created(ctx, path, isDir)
	}
	return nil
}

// created adds a new file. What is in a new directory already is new, too; what
// comes into it later is heard of.
func (w *watcher) created(ctx context.Context, path string, isDir bool) error {
	if w.scanned[path] {
		delete(w.scanned, path)
		return nil
	}
	w.batch.add(change(wire.ChangeCreate, path))
	if !isDir || !w.recursive {
		return nil
	}
	return w.addTree(ctx, path, func(found string) {
		if len(w.scanned) < maxScanned {
			w.scanned[found] = true
		}
		w.batch.add(change(wire.ChangeCreate, found))
	})
}

// renamed gives the watched directories at and below a path their new names.
func (w *watcher) renamed(from, to string) {
	for wd, path := range w.dirs {
		if below, ok := strings.CutPrefix(path, from); ok && (below == "" || below[0] == '/') {
			w.dirs[wd] = to + below
		}
	}
}

// forget ends the watches at and below a path.
func (w *watcher) forget(from string) {
	for wd, path := range w.dirs {
		if below, ok := strings.CutPrefix(path, from); ok && (below == "" || below[0] == '/') {
			w.remove(wd)
			delete(w.dirs, wd)
		}
	}
}
