package warm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ vm.WarmPool = (*Service)(nil)

// Limits of the pool.
const (
	buildTimeout = 15 * time.Minute
	// failureBackoff is how long a failed shape is not built again for VMs that
	// had to boot.
	failureBackoff = time.Hour
	// idleTimeout is how long a build that no client requested waits for the host to
	// be idle. A host on which VMs are always being created needs the pool most, and a
	// guest that is not ready by then takes longer than a build may.
	idleTimeout = buildTimeout
	// baseTimeout is how long a base stays in RAM after its last clone.
	baseTimeout  = 10 * time.Minute
	maxQueued    = 4  // shapes of one owner's images
	maxSnapshots = 16 // of the whole pool
	maxFailed    = 64 // shapes whose failure is remembered
)

// Service is the pool.
type Service struct {
	snapshots *snapshot.Service
	files     snapshot.Files
	images    Images
	mode      Mode
	log       *slog.Logger

	queued chan struct{} // capacity 1; full when the queue may not be empty

	mu     sync.Mutex
	queue  []request
	builds map[string]Entry // by the shape's key: queued, being built, or failed
	now    *build           // the build that Run does; nil: none
	rests  map[string]rest  // by the shape's key
	bases  map[string]*base // in RAM, by snapshot id
}

// request is a shape that waits to be built.
type request struct {
	shape     vm.Shape
	owner     string // of the image
	at        time.Time
	requested bool // by a client: it does not wait for the host to be idle
}

// base is memory that stays in RAM for further clones.
type base struct {
	inode    uint64
	lastUsed time.Time
	unpin    func()
}

// build is a build in progress.
type build struct {
	shape  vm.Shape
	cancel context.CancelFunc
	ended  chan struct{} // closed once nothing is left of it but its snapshot
}

// end cancels the build and waits until it has ended.
func (b *build) end(ctx context.Context) error {
	b.cancel()
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// New returns a pool that builds nothing until Run is called.
func New(snapshots *snapshot.Service, files snapshot.Files, images Images, mode Mode, log *slog.Logger) *Service {
	return &Service{
		snapshots: snapshots, files: files, images: images, mode: mode, log: log,
		queued: make(chan struct{}, 1),
		builds: map[string]Entry{}, rests: map[string]rest{}, bases: map[string]*base{},
	}
}

// Find implements vm.WarmPool.
func (s *Service) Find(ctx context.Context, shape vm.Shape, room func(context.Context) error) (vm.WarmSnapshot, bool) {
	if s.mode == Off {
		return vm.WarmSnapshot{}, false
	}
	snap, ok := s.find(ctx, shape)
	if !ok {
		return vm.WarmSnapshot{}, false
	}
	unpin := s.snapshots.Pin(snap.ID)
	unpinMemory := s.files.PinMemory(snap.ID, min(snap.Bytes, int64(snap.VM.MemMiB)<<20))
	memory, err := s.open(ctx, snap.ID, room)
	if err != nil {
		unpinMemory()
		unpin()
		s.log.Warn("cannot use a warm snapshot", logkey.Snapshot, snap.ID, logkey.Error, err)
		if errs.HasCode(err, "snapshot_unusable") { // else the host is at fault
			s.remove(ctx, snap.ID)
		}
		return vm.WarmSnapshot{}, false
	}
	return vm.WarmSnapshot{Snapshot: snap, Memory: memory, Release: func() { _ = memory.Close(); unpinMemory(); unpin() }}, true
}

func (s *Service) find(ctx context.Context, shape vm.Shape) (snapshot.Snapshot, bool) {
	if _, resting := s.resting(shape); resting || s.hasFailed(shape) {
		return snapshot.Snapshot{}, false
	}
	all, err := s.ready(ctx)
	if err != nil {
		s.log.Error("cannot look for a warm snapshot", logkey.Error, err)
		return snapshot.Snapshot{}, false
	}
	for _, snap := range all {
		if vm.ShapeOf(snap).Key() == shape.Key() {
			return snap, true
		}
	}
	return snapshot.Snapshot{}, false
}

// hasFailed reports whether the shape could not be built, or its snapshot not be
// cloned.
func (s *Service) hasFailed(shape vm.Shape) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.builds[shape.Key()].State == Failed
}

// ready returns the pool's durable snapshots, newest first.
func (s *Service) ready(ctx context.Context) ([]snapshot.Snapshot, error) {
	all, err := s.snapshots.List(ctx, access.Owner(access.SystemID), snapshot.Filter{})
	if err != nil {
		return nil, err
	}
	var ready []snapshot.Snapshot
	for _, snap := range all {
		if snap.Kind == snapshot.Warm && snap.Durable {
			ready = append(ready, snap)
		}
	}
	return ready, nil
}

// open returns the memory of a snapshot, read from disk unless it is in RAM.
func (s *Service) open(ctx context.Context, id string, room func(context.Context) error) (*os.File, error) {
	s.mu.Lock()
	inRAM := s.bases[id] != nil
	s.mu.Unlock()
	if !inRAM {
		if err := room(ctx); err != nil {
			return nil, err
		}
	}
	memory, err := s.files.Base(ctx, id)
	if err != nil {
		return nil, err
	}
	shared, err := vmm.SharedOf(memory)
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bases[id] == nil {
		s.bases[id] = &base{inode: shared.Inode, unpin: s.files.PinMemory(id, 0)}
	}
	s.bases[id].lastUsed = time.Now()
	return memory, nil
}

// Missed implements vm.WarmPool.
func (s *Service) Missed(ctx context.Context, shape vm.Shape) {
	if s.mode != Auto {
		return
	}
	if _, ready := s.find(ctx, shape); ready {
		return // there was no capacity for its memory
	}
	if _, resting := s.resting(shape); resting {
		return
	}
	s.mu.Lock()
	last, known := s.builds[shape.Key()]
	s.mu.Unlock()
	if known && (last.State == Building || time.Since(last.At) < failureBackoff) {
		return
	}
	if err := s.enqueue(ctx, request{shape: shape}); err != nil {
		s.log.Debug("cannot queue a build for the warm pool", logkey.Image, shape.ImageID, logkey.Error, err)
	}
}

// Keep queues a build of this shape and returns at once; List shows its progress.
// A shape that is ready or queued is no error.
// Errors: errs.Unsupported when the pool is off; errs.Exhausted when too many wait.
func (s *Service) Keep(ctx context.Context, shape vm.Shape) error {
	if s.mode == Off {
		return errs.New(errs.Unsupported, "warm_off", "the warm pool of this host is off").WithHint("set HATCH_WARM to auto or manual")
	}
	if _, ready := s.find(ctx, shape); ready {
		return nil
	}
	return s.enqueue(ctx, request{shape: shape, requested: true})
}

// enqueue adds a request. If its shape is queued or being built already, it only makes
// the one in the queue a client's.
func (s *Service) enqueue(ctx context.Context, r request) error {
	owner, err := s.images.ImageOwner(ctx, r.shape.ImageID)
	if err != nil {
		return err
	}
	r.owner, r.at = owner, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[r.shape.Key()].State == Building {
		s.expediteLocked(r)
		return nil
	}
	waiting := 0
	for _, w := range s.queue {
		if w.owner == r.owner {
			waiting++
		}
	}
	if waiting >= maxQueued {
		return errs.New(errs.TooMany, "warm_queue_full", "%d shapes of your images are already waiting to be booted", waiting).WithHint("try again later")
	}
	s.queue = append(s.queue, r)
	s.builds[r.shape.Key()] = Entry{Shape: r.shape, State: Building, At: r.at.UTC()}
	s.signal()
	return nil
}

// expediteLocked makes the queued request of the same shape a client's, if r is.
func (s *Service) expediteLocked(r request) {
	at := slices.IndexFunc(s.queue, func(w request) bool { return w.shape.Key() == r.shape.Key() })
	if at >= 0 && r.requested {
		s.queue[at].requested = true
		s.signal()
	}
}

func (s *Service) signal() {
	select {
	case s.queued <- struct{}{}:
	default:
	}
}

// next removes the first request from the queue that a client made, that waits for too
// long, or any if the host is idle. Its owner's other requests move behind those of
// other owners.
func (s *Service) next(idle bool) (shape vm.Shape, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.IndexFunc(s.queue, func(w request) bool { return idle || w.requested || time.Since(w.at) >= idleTimeout })
	if at < 0 {
		return vm.Shape{}, false
	}
	first := s.queue[at]
	var others, own []request
	for _, w := range slices.Delete(s.queue, at, at+1) {
		if w.owner == first.owner {
			own = append(own, w)
		} else {
			others = append(others, w)
		}
	}
	s.queue = append(others, own...)
	if len(s.queue) > 0 {
		s.signal()
	}
	return first.shape, true
}

// List returns the entries of an image, without snapshots whose files are gone.
func (s *Service) List(ctx context.Context, imageID string) ([]Entry, error) {
	builds := s.buildsOf(imageID) // before what is ready: a build that ends now is in at least one of them
	ready, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, snap := range ready {
		if snap.VM.ImageID == imageID && !s.hasFailed(vm.ShapeOf(snap)) && s.files.Present(snap.ID) == nil {
			e := Entry{Shape: vm.ShapeOf(snap), State: Ready, SnapshotID: snap.ID, Bytes: snap.Bytes, At: snap.CreatedAt}
			if r, resting := s.resting(e.Shape); resting {
				e.State, e.At = Failed, r.from.UTC()
				e.Reason = fmt.Sprintf("it is not cloned until %s: %s", r.until.UTC().Format(time.TimeOnly), r.reason)
			}
			all = append(all, e)
		}
	}
	return append(all, builds...), nil
}

func (s *Service) buildsOf(imageID string) (builds []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.builds {
		if e.Shape.ImageID == imageID {
			builds = append(builds, e)
		}
	}
	return builds
}

// Forget removes the entries of an image. A snapshot in use stays, and is removed
// when it is out of date. Errors: errs.Conflict while one is in use.
func (s *Service) Forget(ctx context.Context, imageID string) error {
	if err := s.endBuilds(ctx, imageID); err != nil {
		return err
	}
	ready, err := s.ready(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, snap := range ready {
		if snap.VM.ImageID == imageID {
			s.dropBase(snap.ID)
			failures = append(failures, s.snapshots.Delete(ctx, access.Owner(access.SystemID), snap.ID))
		}
	}
	return errors.Join(failures...)
}

// endBuilds cancels the builds of an image and waits until nothing is left of them.
func (s *Service) endBuilds(ctx context.Context, imageID string) error {
	s.mu.Lock()
	maps.DeleteFunc(s.builds, func(_ string, e Entry) bool { return e.Shape.ImageID == imageID })
	s.queue = slices.DeleteFunc(s.queue, func(w request) bool { return w.shape.ImageID == imageID })
	now := s.now
	s.mu.Unlock()
	if now == nil || now.shape.ImageID != imageID {
		return nil
	}
	return now.end(ctx)
}

// EndBuild implements capacity.WarmPool. The shape can be queued again.
func (s *Service) EndBuild(ctx context.Context) bool {
	s.mu.Lock()
	now := s.now
	if now != nil {
		delete(s.builds, now.shape.Key())
	}
	s.mu.Unlock()
	if now == nil {
		return false
	}
	s.log.Info("ending a build of the warm pool: a VM needs its room", logkey.Image, now.shape.ImageID)
	return now.end(ctx) == nil
}

// remove deletes a snapshot of the pool.
func (s *Service) remove(ctx context.Context, id string) {
	s.dropBase(id)
	if err := s.snapshots.Delete(ctx, access.Owner(access.SystemID), id); err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Warn("cannot remove a warm snapshot", logkey.Snapshot, id, logkey.Error, err)
	}
}

// dropBase frees the RAM of a base.
func (s *Service) dropBase(id string) {
	s.mu.Lock()
	b := s.bases[id]
	delete(s.bases, id)
	s.mu.Unlock()
	if b != nil {
		b.unpin()
	}
}

// DropIdle implements capacity.WarmPool.
func (s *Service) DropIdle(inUse map[uint64]bool) bool {
	return s.dropBases(func(b *base) bool { return !inUse[b.inode] })
}

// dropBases frees the bases that unused reports.
func (s *Service) dropBases(unused func(*base) bool) (dropped bool) {
	s.mu.Lock()
	var ids []string
	for id, b := range s.bases {
		if unused(b) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.dropBase(id)
	}
	return len(ids) > 0
}
