package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// tidyEvery is how often what is out of date or unused is looked for.
const tidyEvery = time.Minute

// Run builds what is asked for, one at a time, and removes what is out of date,
// until ctx is done. Call it once, after the VMs have been adopted.
func (s *Service) Run(ctx context.Context, vms VMs) {
	defer s.dropBases(unusedFor(0))
	s.removeLeft(ctx, vms)
	s.removeStale(ctx, vms)
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
			if shape, ok := s.next(); ok {
				s.build(ctx, vms, shape)
				s.removeStale(ctx, vms)
			}
		case <-tick.C:
			s.dropBases(unusedFor(baseRest))
			s.removeStale(ctx, vms)
		}
	}
}

// removeLeft deletes the VMs of an earlier daemon's builds.
func (s *Service) removeLeft(ctx context.Context, vms VMs) {
	left, _, err := vms.List(ctx, access.SystemID, vm.Filter{})
	if err != nil {
		s.log.Error("cannot look for what an earlier daemon has left", "err", err)
	}
	for _, v := range left {
		s.delete(ctx, vms, v.ID)
	}
}

func (s *Service) delete(ctx context.Context, vms VMs, id string) {
	if err := vms.Delete(context.WithoutCancel(ctx), access.SystemID, id); err != nil && !errs.Is(err, errs.NotFound) {
		s.log.Error("cannot delete a VM that was made to be kept booted", "vm", id, "err", err)
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
		s.mu.Unlock()
		s.log.Info("a booted guest is kept", "image", shape.ImageID, "vcpus", shape.VCPUs, "mem_mib", shape.MemMiB, "took", time.Since(began))
	case ctx.Err() == nil: // else it was forgotten, or hatchd ends
		s.log.Warn("a guest that was to be kept could not be booted", "image", shape.ImageID, "err", err)
		s.fail(shape, err)
	}
}

// reason is what owners of the image may read of err.
func reason(err error) string {
	var e *errs.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "an internal fault; hatchd's log has the details"
}

// beginBuild lets Forget end the build until end is called, which is nil when
// the shape has been forgotten before.
func (s *Service) beginBuild(ctx context.Context, shape vm.Shape) (_ context.Context, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[shape.Key()].State != Building {
		return ctx, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	now := &building{shape: shape, cancel: cancel, ended: make(chan struct{})}
	s.now = now
	return ctx, func() {
		cancel()
		s.mu.Lock()
		s.now = nil
		s.mu.Unlock()
		close(now.ended)
	}
}

// boot keeps a guest that has done all it does at its first boot.
func (s *Service) boot(ctx context.Context, vms VMs, shape vm.Shape) error {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	v, err := vms.CreateOfShape(ctx, shape)
	defer s.delete(ctx, vms, v.ID)
	if err != nil {
		return fmt.Errorf("cannot start it: %w", err)
	}
	if _, err := vms.Wait(ctx, access.SystemID, v.ID, vm.WaitFor{Ready: true}); err != nil {
		return fmt.Errorf("it did not become ready: %w", err)
	}
	_, err = vms.KeepWarm(ctx, v.ID)
	return err
}

// removeStale removes what no new VM would be made from: its image, kernel,
// agent or VMM is another one now. What is too much goes, too.
func (s *Service) removeStale(ctx context.Context, vms VMs) {
	kept, err := s.kept(ctx)
	if err != nil {
		s.log.Error("cannot look for booted guests that are out of date", "err", err)
		return
	}
	seen := map[string]bool{}
	var current []snapshot.Snapshot
	for _, one := range kept {
		shape := vm.ShapeOf(one)
		if seen[shape.Key()] || s.hasFailed(shape) || !vms.IsCurrent(ctx, shape) {
			s.log.Info("removing a booted guest that is out of date or of no use", "snapshot", one.ID, "image", shape.ImageID)
			s.remove(ctx, one.ID)
		} else {
			current = append(current, one)
		}
		seen[shape.Key()] = true
	}
	for len(current) > maxKept {
		current = s.removeSurplus(ctx, current)
	}
}

// removeSurplus removes the oldest of whoever has the most, and returns the others.
func (s *Service) removeSurplus(ctx context.Context, kept []snapshot.Snapshot) []snapshot.Snapshot {
	oldest, count := map[string]int{}, map[string]int{} // by owner
	most := ""
	for i, one := range kept { // the newest is the first
		owner, err := s.images.ImageOwner(ctx, one.VM.ImageID)
		if err != nil {
			s.log.Error("cannot tell whose a booted guest is", "snapshot", one.ID, "err", err)
		}
		oldest[owner] = i
		if count[owner]++; count[owner] > count[most] {
			most = owner
		}
	}
	going := kept[oldest[most]]
	s.log.Info("removing a booted guest: there are too many", "snapshot", going.ID, "image", going.VM.ImageID)
	s.remove(ctx, going.ID)
	return slices.DeleteFunc(kept, func(one snapshot.Snapshot) bool { return one.ID == going.ID })
}

func unusedFor(so time.Duration) func(*idle) bool {
	return func(m *idle) bool { return time.Since(m.used) >= so }
}
