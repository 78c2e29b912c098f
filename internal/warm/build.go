package warm

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// tidyInterval is how often outdated snapshots and unused bases are removed.
const tidyInterval = time.Minute

// lookInterval is the least time between two looks whether the host is idle: each
// lists all VMs, and a host on which VMs are being started changes all the time.
const lookInterval = time.Second

// Run builds queued shapes, one at a time, and removes outdated snapshots, until
// ctx is done. Call it once, after startup recovery.
func (s *Service) Run(ctx context.Context, vms VMs) {
	defer s.dropBases(unusedFor(0))
	s.removeLeftovers(ctx, vms)
	s.removeStale(ctx, vms)
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	var changed, look <-chan struct{} // of a VM, while requests wait for the host to be idle
	var mayLook <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.queued:
		case <-mayLook:
			mayLook, look = nil, changed
			continue
		case <-look:
		case <-tick.C: // also ends a wait that takes too long
			s.dropBases(unusedFor(baseTimeout))
			s.removeStale(ctx, vms)
			s.retryFailed(ctx, vms)
		}
		changed, look, mayLook = s.buildNext(ctx, vms), nil, nil
		if changed != nil {
			mayLook = time.After(lookInterval)
		}
	}
}

// buildNext builds the next shape, if it need not wait for the host to be idle. Else it
// returns a channel that is closed when the host may be.
func (s *Service) buildNext(ctx context.Context, vms VMs) (changed <-chan struct{}) {
	s.mu.Lock()
	empty := len(s.queue) == 0
	s.mu.Unlock()
	if empty {
		return nil
	}
	idle, changed, err := vms.Idle(ctx)
	if err != nil {
		s.log.Error("cannot look whether VMs are being started", logkey.Error, err)
	}
	shape, ok := s.next(idle)
	if !ok {
		return changed
	}
	s.build(ctx, vms, shape)
	s.removeStale(ctx, vms)
	return nil
}

// removeLeftovers deletes the VMs of an earlier hatchd's builds.
func (s *Service) removeLeftovers(ctx context.Context, vms VMs) {
	left, _, err := vms.List(ctx, access.Owner(access.SystemID), vm.Filter{})
	if err != nil {
		s.log.Error("cannot look for VMs of an earlier hatchd's builds", logkey.Error, err)
	}
	for _, v := range left {
		s.delete(ctx, vms, v.ID)
	}
}

func (s *Service) delete(ctx context.Context, vms VMs, id string) {
	if err := vms.Delete(context.WithoutCancel(ctx), access.Owner(access.SystemID), id); err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Error("cannot delete a VM of a build for the warm pool", logkey.VM, id, logkey.Error, err)
	}
}

func (s *Service) build(ctx context.Context, vms VMs, shape vm.Shape) {
	ctx, end := s.beginBuild(ctx, shape)
	if end == nil {
		return
	}
	defer end()
	began := time.Now()
	err := s.boot(ctx, vms, shape)
	switch {
	case err == nil:
		s.mu.Lock()
		delete(s.builds, shape.Key())
		delete(s.rests, shape.Key()) // which was about an older one
		s.mu.Unlock()
		s.log.Info("warm snapshot built", logkey.Image, shape.ImageID, "vcpus", shape.VCPUs, "mem_mib", shape.MemMiB, logkey.Took, time.Since(began))
	case ctx.Err() == nil: // else it was cancelled
		s.log.Warn("cannot build a warm snapshot", logkey.Image, shape.ImageID, logkey.Error, err)
		s.fail(ctx, shape, err)
	}
}

// beginBuild makes the build cancellable until end is called; end is nil when the
// shape was cancelled before.
func (s *Service) beginBuild(ctx context.Context, shape vm.Shape) (_ context.Context, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[shape.Key()].State != Building {
		return ctx, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	now := &build{shape: shape, cancel: cancel, ended: make(chan struct{})}
	s.now = now
	return ctx, func() {
		cancel()
		s.mu.Lock()
		s.now = nil
		s.mu.Unlock()
		close(now.ended)
	}
}

// boot boots a VM, waits for the end of its first boot, and takes the snapshot.
func (s *Service) boot(ctx context.Context, vms VMs, shape vm.Shape) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	v, err := vms.CreateOfShape(ctx, shape)
	defer s.delete(ctx, vms, v.ID)
	if err != nil {
		return fmt.Errorf("cannot start it: %w", err)
	}
	if _, err := vms.Wait(ctx, access.Owner(access.SystemID), v.ID, vm.WaitFor{Ready: true}); err != nil {
		return fmt.Errorf("it did not become ready: %w", err)
	}
	_, err = vms.SnapshotWarm(ctx, v.ID)
	return err
}

// removeStale removes snapshots that no new VM would be cloned from, because files are
// gone, or image, kernel, agent or VMM have changed, and then the oldest beyond maxSnapshots.
func (s *Service) removeStale(ctx context.Context, vms VMs) {
	ready, err := s.ready(ctx)
	if err != nil {
		s.log.Error("cannot look for outdated warm snapshots", logkey.Error, err)
		return
	}
	seen := map[string]bool{}
	var current []snapshot.Snapshot
	for _, snap := range ready {
		shape := vm.ShapeOf(snap)
		gone := errs.HasCode(s.files.Present(snap.ID), "snapshot_unusable")
		if gone || seen[shape.Key()] || s.hasFailed(shape) || !vms.IsCurrent(ctx, shape) {
			s.log.Info("removing an outdated or damaged warm snapshot", logkey.Snapshot, snap.ID, logkey.Image, shape.ImageID)
			s.remove(ctx, snap.ID)
		} else {
			current = append(current, snap)
		}
		seen[shape.Key()] = seen[shape.Key()] || !gone
	}
	for len(current) > maxSnapshots {
		current = s.removeSurplus(ctx, current)
	}
}

// removeSurplus removes the oldest snapshot of the owner with the most, and returns
// the others.
func (s *Service) removeSurplus(ctx context.Context, all []snapshot.Snapshot) []snapshot.Snapshot {
	oldest, count := map[string]int{}, map[string]int{} // by owner
	most := ""
	for i, snap := range all { // newest first
		owner, err := s.images.ImageOwner(ctx, snap.VM.ImageID)
		if err != nil {
			s.log.Error("cannot find the owner of a warm snapshot's image", logkey.Snapshot, snap.ID, logkey.Error, err)
		}
		oldest[owner] = i
		if count[owner]++; count[owner] > count[most] {
			most = owner
		}
	}
	surplus := all[oldest[most]]
	s.log.Info("removing a warm snapshot: there are too many", logkey.Snapshot, surplus.ID, logkey.Image, surplus.VM.ImageID)
	s.remove(ctx, surplus.ID)
	return slices.DeleteFunc(all, func(snap snapshot.Snapshot) bool { return snap.ID == surplus.ID })
}

func unusedFor(d time.Duration) func(*base) bool {
	return func(b *base) bool { return time.Since(b.lastUsed) >= d }
}
