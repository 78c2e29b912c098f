package envd

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// The messages of watches whose changes a client fetches.
type (
	watcherRequest struct {
		ID      string `json:"watcherId"`
		IDSnake string `json:"watcher_id"`
	}
	watcherAnswer struct {
		ID string `json:"watcherId"`
	}
	watcherEventsAnswer struct {
		Events []fileChange `json:"events"`
	}
)

// Limits of watches whose changes a client fetches.
const (
	maxWatchers     = 1024             // of all VMs
	maxVMWatchers   = 64               // of one
	maxWatcherQueue = 4 << 20          // bytes of changes that were not fetched
	changeCost      = 128              // bytes of a change, without its names
	watcherIdle     = 30 * time.Minute // after which one is removed that no client asks for

	// A change that was made before a call must be in its answer: the guest collects
	// changes for a little, and the client may ask at once.
	watcherDelay = 50 * time.Millisecond
	watcherWait  = 100 * time.Millisecond // more, if there is none
)

// watchers are the watches whose changes clients fetch. They end with hatchd, but the id
// of one says what it watches, so that the next hatchd begins it again.
type watchers struct {
	instance string // part of all ids of this hatchd
	running  sync.WaitGroup

	mu     sync.Mutex
	all    map[string]*watcher // by id
	closed bool
}

// watcher is one of them.
type watcher struct {
	call
	watch
	idle *time.Timer // removes it

	arrived chan struct{} // has an element after a change

	mu      sync.Mutex
	changes []fileChange
	bytes   int   // of the changes
	ended   error // nil while it watches
	removed bool
	cancel  context.CancelFunc
}

// errNotBegun is what a watcher has instead of the error of an ended watch.
var errNotBegun = connect.Errorf(connect.Unavailable, "the watch has not begun")

func (ws *watchers) close() {
	ws.mu.Lock()
	ws.closed = true
	all := ws.all
	ws.all = map[string]*watcher{}
	ws.mu.Unlock()
	for _, w := range all {
		w.stop()
	}
	ws.running.Wait()
}

// key returns an id for a watch.
func (ws *watchers) key(of watch) string {
	text, _ := json.Marshal(of) // a path and two flags
	return ws.instance + id.New("") + "." + base64.RawURLEncoding.EncodeToString(text)
}

// maxWatcherKey limits the id of a watcher, in bytes: of one with the longest path.
const maxWatcherKey = 48 << 10

// watchOf returns the watch of an id that another hatchd has made.
func (ws *watchers) watchOf(key string) (of watch, ok bool) {
	_, encoded, ok := strings.Cut(key, ".")
	if !ok || len(key) > maxWatcherKey || strings.HasPrefix(key, ws.instance) {
		return watch{}, false
	}
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	return of, err == nil && json.Unmarshal(text, &of) == nil && path.IsAbs(of.Path) && path.Clean(of.Path) == of.Path
}

// add adds a watcher, unless there are too many.
func (ws *watchers) add(key string, w *watcher) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	same := 0
	for _, other := range ws.all {
		if other.VMID == w.VMID {
			same++
		}
	}
	switch {
	case ws.closed:
		return connect.Errorf(connect.Unavailable, "hatchd is shutting down")
	case ws.all[key] != nil:
		return nil // another call has added it meanwhile
	case same >= maxVMWatchers || len(ws.all) >= maxWatchers:
		return connect.Errorf(connect.ResourceExhausted, "there are too many watchers: remove some that are no longer used")
	}
	ws.all[key] = w
	w.idle = time.AfterFunc(watcherIdle, func() { ws.remove(w.VMID, key) })
	return nil
}

// find returns a watcher of a VM, nil if it has none with this id.
func (ws *watchers) find(vmID, key string) *watcher {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w := ws.all[key]; w != nil && w.VMID == vmID {
		w.idle.Reset(watcherIdle)
		return w
	}
	return nil
}

// remove removes a watcher, and reports whether the VM had it.
func (ws *watchers) remove(vmID, key string) bool {
	w := ws.find(vmID, key)
	if w == nil {
		return false
	}
	ws.mu.Lock()
	delete(ws.all, key)
	ws.mu.Unlock()
	w.stop()
	return true
}

func (w *watcher) stop() {
	w.idle.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removed = true
	w.cancel()
}

// createWatcher begins a watch whose changes the client fetches.
func (e *Envd) createWatcher(ctx context.Context, c call, req *watchRequest) (any, error) {
	wanted, err := e.watchOf(ctx, c, req)
	if err != nil {
		return nil, err
	}
	key := e.watchers.key(wanted)
	if err := e.beginWatcher(ctx, c, key, wanted); err != nil {
		return nil, err
	}
	return watcherAnswer{key}, nil
}

func (e *Envd) beginWatcher(ctx context.Context, c call, key string, wanted watch) error {
	w := &watcher{call: c, watch: wanted, arrived: make(chan struct{}, 1), ended: errNotBegun, cancel: func() {}}
	if err := e.watchers.add(key, w); err != nil {
		return err
	}
	err := e.run(ctx, w)
	if err != nil {
		e.watchers.remove(c.VMID, key)
	}
	return err
}

// findWatcher returns a watcher. It begins one again whose hatchd has ended: changes that
// were made meanwhile are not in its answers.
func (e *Envd) findWatcher(ctx context.Context, c call, req *watcherRequest) (*watcher, error) {
	w := e.watchers.find(c.VMID, req.key())
	if wanted, ok := e.watchers.watchOf(req.key()); w == nil && ok {
		if err := e.beginWatcher(ctx, c, req.key(), wanted); err != nil {
			return nil, err
		}
		w = e.watchers.find(c.VMID, req.key())
	}
	if w == nil {
		return nil, connect.Errorf(connect.NotFound, "watcher with id %s not found", errs.Brief(req.key()))
	}
	return w, nil
}

// begin marks a watch as begun, unless it has begun already or was removed.
func (w *watcher) begin(cancel context.CancelFunc) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil || w.removed {
		return false
	}
	w.ended, w.cancel = nil, cancel
	return true
}

// run starts a watcher's watch, and returns when it has begun. The watch goes on without
// the request.
func (e *Envd) run(ctx context.Context, w *watcher) error {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if !w.begin(cancel) {
		cancel()
		return nil
	}
	began, ended := make(chan struct{}), make(chan error, 1)
	e.watchers.running.Go(func() {
		defer cancel()
		err := broken(e.watch(running, w.call, w.watch, func() { close(began) }, w.add))
		w.mu.Lock()
		w.ended = err
		w.mu.Unlock()
		ended <- err
	})
	select {
	case <-began:
		return nil
	case err := <-ended:
		return err
	case <-ctx.Done():
		cancel()
		return ctx.Err()
	}
}

func (w *watcher) add(change fileChange) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes += changeCost + len(change.Name)
	if change.Entry != nil {
		w.bytes += changeCost + len(change.Entry.Path) + len(change.Entry.SymlinkTarget)
	}
	if w.bytes > maxWatcherQueue {
		return connect.Errorf(connect.DataLoss, "there were too many changes since the last call: list the directory again")
	}
	w.changes = append(w.changes, change)
	select {
	case w.arrived <- struct{}{}:
	default:
	}
	return nil
}

// await waits for changes that were made before.
func (w *watcher) await(ctx context.Context) {
	first, last := time.NewTimer(watcherDelay), time.NewTimer(watcherDelay+watcherWait)
	defer first.Stop()
	defer last.Stop()
	select {
	case <-first.C:
	case <-ctx.Done():
	}
	select {
	case <-w.arrived:
	case <-last.C:
	case <-ctx.Done():
	}
}

// fetch returns the changes since the last call, and why the watch has ended.
func (w *watcher) fetch() ([]fileChange, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changes := w.changes
	w.changes, w.bytes = nil, 0
	if changes == nil {
		changes = []fileChange{}
	}
	return changes, w.ended
}

// watcherEvents returns the changes since the last call. It starts a watch again that has
// ended with the guest's connection, such as one of a VM that has slept.
func (e *Envd) watcherEvents(ctx context.Context, c call, req *watcherRequest) (any, error) {
	w, err := e.findWatcher(ctx, c, req)
	if err != nil {
		return nil, err
	}
	w.await(ctx)
	changes, err := w.fetch()
	switch {
	case errs.Is(err, errs.Unavailable), errs.Is(err, errs.Conflict):
		err = e.run(ctx, w)
	case len(changes) > 0: // the error is for the next call
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return watcherEventsAnswer{changes}, nil
}

// removeWatcher ends a watch.
func (e *Envd) removeWatcher(_ context.Context, c call, req *watcherRequest) (any, error) {
	if !e.watchers.remove(c.VMID, req.key()) {
		if _, other := e.watchers.watchOf(req.key()); !other {
			return nil, connect.Errorf(connect.NotFound, "watcher with id %s not found", errs.Brief(req.key()))
		}
	}
	return empty{}, nil
}

func (r *watcherRequest) key() string {
	if r.ID == "" {
		return r.IDSnake
	}
	return r.ID
}
