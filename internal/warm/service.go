package warm

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ vm.Warm = (*Service)(nil)

// Bounds of the work.
const (
	buildLimit = 15 * time.Minute
	// failureRest is how long a shape that could not be built is left alone by VMs
	// that had to boot.
	failureRest = time.Hour
	// baseRest is how long a memory stays in RAM that no VM was made from.
	baseRest   = 10 * time.Minute
	maxWaiting = 4  // shapes of one owner's images that wait to be built
	maxKept    = 16 // booted guests
	maxFailed  = 64 // shapes that are known not to boot
)

// Service keeps booted guests.
type Service struct {
	snapshots *snapshot.Service
	files     snapshot.Files
	images    Images
	mode      Mode
	log       *slog.Logger

	asked chan struct{} // capacity 1; full when something may wait to be built

	mu     sync.Mutex
	queue  []wanted         // what waits to be built
	builds map[string]Guest // by the shape's key: under way, or failed
	now    *building        // what Run builds; nil: nothing
	idle   map[string]*idle // memories that stay in RAM for a while, by snapshot id
}

// wanted is a shape that waits to be built.
type wanted struct {
	shape vm.Shape
	owner string // of the image
}

// idle is a memory that nobody may want any more.
type idle struct {
	inode   uint64
	used    time.Time // last
	release func()
}

// building is a build that has begun.
type building struct {
	shape  vm.Shape
	cancel context.CancelFunc
	ended  chan struct{} // closed once nothing is left of it but what is kept
}

// end waits until it has ended.
func (b *building) end(ctx context.Context) error {
	b.cancel()
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// New makes a service that keeps nothing until Run is called.
func New(snapshots *snapshot.Service, files snapshot.Files, images Images, mode Mode, log *slog.Logger) *Service {
	return &Service{
		snapshots: snapshots, files: files, images: images, mode: mode, log: log,
		asked:  make(chan struct{}, 1),
		builds: map[string]Guest{}, idle: map[string]*idle{},
	}
}

// Find implements vm.Warm.
func (s *Service) Find(ctx context.Context, shape vm.Shape, room func(context.Context) error) (vm.Warmth, bool) {
	if s.mode == Off {
		return vm.Warmth{}, false
	}
	one, ok := s.find(ctx, shape)
	if !ok {
		return vm.Warmth{}, false
	}
	release := s.snapshots.Hold(one.ID)
	drop := s.files.HoldMemory(one.ID, min(one.Bytes, int64(one.VM.MemMiB)<<20))
	memory, err := s.base(ctx, one.ID, room)
	if err != nil {
		drop()
		release()
		s.log.Warn("a booted guest cannot be used", "snapshot", one.ID, "err", err)
		if errs.HasCode(err, "snapshot_unusable") { // else it was the host's fault
			s.remove(ctx, one.ID)
		}
		return vm.Warmth{}, false
	}
	return vm.Warmth{Snapshot: one, Memory: memory, Release: func() { _ = memory.Close(); drop(); release() }}, true
}

func (s *Service) find(ctx context.Context, shape vm.Shape) (snapshot.Snapshot, bool) {
	if s.hasFailed(shape) {
		return snapshot.Snapshot{}, false
	}
	all, err := s.kept(ctx)
	if err != nil {
		s.log.Error("cannot look for a booted guest", "err", err)
		return snapshot.Snapshot{}, false
	}
	for _, one := range all {
		if vm.ShapeOf(one).Key() == shape.Key() {
			return one, true
		}
	}
	return snapshot.Snapshot{}, false
}

// hasFailed reports whether the shape could not be built, or what was built is
// of no use.
func (s *Service) hasFailed(shape vm.Shape) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.builds[shape.Key()].State == Failed
}

// kept lists what counts, newest first.
func (s *Service) kept(ctx context.Context) ([]snapshot.Snapshot, error) {
	all, err := s.snapshots.List(ctx, access.SystemID, snapshot.Filter{})
	if err != nil {
		return nil, err
	}
	var kept []snapshot.Snapshot
	for _, one := range all {
		if one.Kind == snapshot.Warm && one.Durable {
			kept = append(kept, one)
		}
	}
	return kept, nil
}

// base returns the memory of a snapshot, which is read from disk when it was not
// used lately.
func (s *Service) base(ctx context.Context, id string, room func(context.Context) error) (*os.File, error) {
	s.mu.Lock()
	there := s.idle[id] != nil
	s.mu.Unlock()
	if !there {
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
	if s.idle[id] == nil {
		s.idle[id] = &idle{inode: shared.Inode, release: s.files.HoldMemory(id, 0)}
	}
	s.idle[id].used = time.Now()
	return memory, nil
}

// Missed implements vm.Warm.
func (s *Service) Missed(ctx context.Context, shape vm.Shape) {
	if s.mode != Auto {
		return
	}
	if _, there := s.find(ctx, shape); there {
		return // but there was no room for it
	}
	s.mu.Lock()
	last, known := s.builds[shape.Key()]
	s.mu.Unlock()
	if known && (last.State == Building || time.Since(last.At) < failureRest) {
		return
	}
	if err := s.ask(ctx, shape); err != nil {
		s.log.Debug("a shape is not kept", "image", shape.ImageID, "err", err)
	}
}

// Spoiled implements vm.Warm. It is as if the build had failed; Run removes what
// is there.
func (s *Service) Spoiled(one snapshot.Snapshot, cause error) {
	s.log.Warn("a booted guest is of no use", "snapshot", one.ID, "image", one.VM.ImageID, "err", cause)
	s.fail(vm.ShapeOf(one), cause)
}

// fail lets a shape rest.
func (s *Service) fail(shape vm.Shape, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.builds) >= len(s.queue)+maxFailed {
		maps.DeleteFunc(s.builds, func(_ string, g Guest) bool { return g.State == Failed })
	}
	s.builds[shape.Key()] = Guest{Shape: shape, State: Failed, Reason: reason(cause), At: time.Now().UTC()}
}

// Keep asks for a booted guest of this shape and returns at once: List tells how
// far it is. One that is there or on its way is no error.
// Errors: errs.Unsupported when none are kept; errs.Exhausted when too many wait.
func (s *Service) Keep(ctx context.Context, shape vm.Shape) error {
	if s.mode == Off {
		return errs.New(errs.Unsupported, "warm_off", "booted guests are not kept on this host").WithHint("set HATCH_WARM to auto or manual")
	}
	if _, there := s.find(ctx, shape); there {
		return nil
	}
	return s.ask(ctx, shape)
}

func (s *Service) ask(ctx context.Context, shape vm.Shape) error {
	owner, err := s.images.ImageOwner(ctx, shape.ImageID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[shape.Key()].State == Building {
		return nil
	}
	waiting := 0
	for _, w := range s.queue {
		if w.owner == owner {
			waiting++
		}
	}
	if waiting >= maxWaiting {
		return errs.New(errs.Exhausted, "warm_queue_full", "%d shapes of your images wait already to be booted", waiting).WithHint("try again later")
	}
	s.queue = append(s.queue, wanted{shape, owner})
	s.builds[shape.Key()] = Guest{Shape: shape, State: Building, At: time.Now().UTC()}
	s.signal()
	return nil
}

func (s *Service) signal() {
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// next takes what is to be built next. What else its owner waits for comes after
// what others do.
func (s *Service) next() (shape vm.Shape, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return vm.Shape{}, false
	}
	first := s.queue[0]
	var others, own []wanted
	for _, w := range s.queue[1:] {
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

// List returns what is kept of an image, and what is on its way.
func (s *Service) List(ctx context.Context, imageID string) ([]Guest, error) {
	kept, err := s.kept(ctx)
	if err != nil {
		return nil, err
	}
	var all []Guest
	for _, one := range kept {
		if one.VM.ImageID == imageID && !s.hasFailed(vm.ShapeOf(one)) {
			all = append(all, Guest{Shape: vm.ShapeOf(one), State: Ready, SnapshotID: one.ID, Bytes: one.Bytes, At: one.CreatedAt})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.builds {
		if g.Shape.ImageID == imageID {
			all = append(all, g)
		}
	}
	return all, nil
}

// Forget removes what is kept of an image, and what is on its way. What is in use
// stays, and goes when it is out of date. Errors: errs.Conflict while one is in use.
func (s *Service) Forget(ctx context.Context, imageID string) error {
	if err := s.endBuilds(ctx, imageID); err != nil {
		return err
	}
	kept, err := s.kept(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for _, one := range kept {
		if one.VM.ImageID == imageID {
			s.dropBase(one.ID)
			faults = append(faults, s.snapshots.Delete(ctx, access.SystemID, one.ID))
		}
	}
	return errors.Join(faults...)
}

// endBuilds ends the builds of an image and waits until nothing is left of them.
func (s *Service) endBuilds(ctx context.Context, imageID string) error {
	s.mu.Lock()
	maps.DeleteFunc(s.builds, func(_ string, g Guest) bool { return g.Shape.ImageID == imageID })
	s.queue = slices.DeleteFunc(s.queue, func(w wanted) bool { return w.shape.ImageID == imageID })
	now := s.now
	s.mu.Unlock()
	if now == nil || now.shape.ImageID != imageID {
		return nil
	}
	return now.end(ctx)
}

// EndBuild implements vm.Warm. The shape can be asked for anew.
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
	s.log.Info("a VM needs the room of a guest that was to be kept booted", "image", now.shape.ImageID)
	return now.end(ctx) == nil
}

// remove deletes a snapshot that is of no use.
func (s *Service) remove(ctx context.Context, id string) {
	s.dropBase(id)
	if err := s.snapshots.Delete(ctx, access.SystemID, id); err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Warn("cannot remove a booted guest", "snapshot", id, "err", err)
	}
}

// dropBase gives the RAM of a memory back.
func (s *Service) dropBase(id string) {
	s.mu.Lock()
	m := s.idle[id]
	delete(s.idle, id)
	s.mu.Unlock()
	if m != nil {
		m.release()
	}
}

// DropIdle implements vm.Warm.
func (s *Service) DropIdle(inUse map[uint64]bool) bool {
	return s.dropBases(func(m *idle) bool { return !inUse[m.inode] })
}

// dropBases drops those that are not wanted.
func (s *Service) dropBases(unwanted func(*idle) bool) (dropped bool) {
	s.mu.Lock()
	var ids []string
	for id, m := range s.idle {
		if unwanted(m) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.dropBase(id)
	}
	return len(ids) > 0
}
