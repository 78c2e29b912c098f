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

// Limits of one watch.
const (
	maxWatches    = 64 << 10              // directories
	maxScanned    = 64 << 10              // files found in new directories
	maxBatch      = 512                   // changes
	batchInterval = 25 * time.Millisecond // between reports
)

// watchMask are the watched events of each directory.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// errOverflow means that the kernel has dropped events.
var errOverflow = errors.New("the kernel has dropped events")

// WatchFiles implements wire.FileHandler. While a report waits for hatchd, the kernel
// queues events. If it has to drop some, WatchFiles starts the watch again and reports
// the change "missed".
func (f *Files) WatchFiles(ctx context.Context, args wire.WatchFilesArgs, began func() error, report func([]wire.FileChange) error) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	for {
		w, err := watch(ctx, path, args.Recursive)
		if err != nil {
			return wireError(err)
		}
		if err = began(); err == nil {
			err = w.follow(ctx, report)
		}
		w.inotify.close()
		if !errors.Is(err, errOverflow) {
			return wireError(err)
		}
		began = func() error { return report([]wire.FileChange{change(wire.ChangeMissed, path)}) }
	}
}

func change(kind, path string) wire.FileChange {
	now := time.Now()
	return wire.FileChange{Kind: kind, Path: []byte(path), Seconds: now.Unix(), Nanos: int64(now.Nanosecond())}
}

// watcher watches a path.
type watcher struct {
	*inotify
	top       string // the watched directory
	topID     int32
	only      string // the one file in it whose changes are reported; "" means all
	recursive bool
	dirs      map[int32]string // paths of the watched directories
	scanned   map[string]bool  // files found in new directories, whose events may still arrive
	batch     batch
}

// watch starts to watch a directory, or the directory of a file, to notice when the
// file is replaced.
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

// scan watches the directories below a watched one, and calls found for each file.
func (w *watcher) scan(ctx context.Context, path string, flags int, found func(path string)) error {
	dir, err := openDirectory(unix.AT_FDCWD, path, flags)
	if removed(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if isGenerated(int(dir.Fd())) {
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

// addTree watches a directory and those below it.
func (w *watcher) addTree(ctx context.Context, path string, found func(path string)) error {
	wd, err := w.add(path, watchMask|unix.IN_DONT_FOLLOW)
	if removed(err) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	w.dirs[wd] = path
	if len(w.dirs) > maxWatches {
		return wire.Refuse(wire.CodeTooManyWatches, "the watched tree has more than %d directories", maxWatches)
	}
	return w.scan(ctx, path, unix.O_NOFOLLOW, found)
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// follow reports changes until ctx is done or the watch fails.
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
		if size, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ); err != nil || size <= 0 {
			clear(w.scanned) // all events have been read
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

// report reports the batch, and removes the watches of directories that were renamed to
// a path that is not watched.
func (w *watcher) report(report func([]wire.FileChange) error) error {
	changes, away := w.batch.flush()
	for _, path := range away {
		w.unwatch(path)
	}
	if len(changes) == 0 {
		return nil
	}
	return report(changes)
}

// handle adds the change of an event to the batch.
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

// handleSelf handles an event of a watched directory itself. It ignores those of all but
// the topmost, whose parents have the same event.
func (w *watcher) handleSelf(e event) error {
	path := w.top
	if w.only != "" {
		path = join(w.top, w.only)
	}
	switch {
	case e.wd != w.topID:
	case e.mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
		w.batch.add(change(wire.ChangeRemove, path))
		return wire.Refuse(wire.CodeNotFound, "the watched file was removed or renamed")
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
		w.batch.moveFrom(change(wire.ChangeRemove, path), e.cookie, isDir)
	case e.mask&unix.IN_MOVED_TO != 0:
		if from, ok := w.batch.moveTo(path, e.cookie); ok {
			for wd, watched := range w.dirs {
				if below, ok := strings.CutPrefix(watched, from); ok && (below == "" || below[0] == '/') {
					w.dirs[wd] = path + below
				}
			}
			return nil
		}
		return w.created(ctx, path, isDir)
	}
	return nil
}

// created adds a new file and, for a directory, the files that it contains already.
// Later ones have events.
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

// unwatch removes the watches at and below a path.
func (w *watcher) unwatch(from string) {
	for wd, path := range w.dirs {
		if below, ok := strings.CutPrefix(path, from); ok && (below == "" || below[0] == '/') {
			w.remove(wd)
			delete(w.dirs, wd)
		}
	}
}
