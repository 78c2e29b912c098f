package vm

import (
	"context"
	"errors"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// capacity is what VMs may take of the host.
func (s *Service) capacity() (Capacity, error) {
	disk, err := s.deps.Host.DiskMiB()
	if err != nil {
		return Capacity{}, fmt.Errorf("cannot tell the free disk space: %w", err)
	}
	limit, err := s.memoryCapacity()
	limit.DiskMiB = disk
	return limit, err
}

// memoryCapacity is capacity for whoever has a disk already.
func (s *Service) memoryCapacity() (Capacity, error) {
	return Capacity{MemMiB: s.deps.Host.MemMiB(), Bases: s.deps.SnapshotFiles.Bases}, nil
}

// lease reserves what a VM needs on the host that is there already.
func (s *Service) lease(ctx context.Context, v VM, capacity func() (Capacity, error)) (leased VM, err error) {
	err = s.withRoom(ctx, v.OwnerID, func() error {
		limit, err := capacity()
		if err == nil {
			leased, err = s.deps.Store.LeaseVM(ctx, v.ID, s.poolsFor(v), limit)
		}
		return err
	})
	return leased, err
}

// checkMemory finds out whether there is room for the VM's memory, be it counted
// already or not, beside all else that is.
func (s *Service) checkMemory(ctx context.Context, v VM) error {
	return s.withRoom(ctx, v.OwnerID, func() error { return s.checkMemoryNow(ctx, v) })
}

func (s *Service) checkMemoryNow(ctx context.Context, v VM) error {
	limit, err := s.memoryCapacity()
	if err != nil {
		return err
	}
	return s.deps.Store.CheckMemory(ctx, v, limit)
}

// checkWarmMemory is checkMemory for a VM that can boot instead: idle memory
// gives way to it, but nobody's build.
func (s *Service) checkWarmMemory(ctx context.Context, v VM) error {
	for {
		err := s.checkMemoryNow(ctx, v)
		if v.OwnerID == access.SystemID || !errors.Is(err, ErrOwnInTheWay) {
			return err
		}
		if dropped, dropErr := s.dropIdleMemory(ctx); !dropped {
			return errors.Join(err, dropErr)
		}
	}
}

// withRoom does what takes room on the host for an owner. When there is none,
// what hatchd keeps to save time gives way, piece by piece.
func (s *Service) withRoom(ctx context.Context, owner string, take func() error) error {
	for {
		err := take()
		if err == nil || !s.giveWay(ctx, owner, err) {
			return err
		}
	}
}

// giveWay reports whether there may be room now for what was refused.
func (s *Service) giveWay(ctx context.Context, owner string, refused error) bool {
	if owner == access.SystemID { // it may save somebody time, and costs nobody anything
		return false
	}
	var gone bool
	var err error
	switch {
	case errors.Is(refused, ErrOwnInTheWay): // else it would go in vain
		if errs.HasCode(refused, "memory_exhausted") {
			gone, err = s.dropIdleMemory(ctx)
		}
		gone = gone || s.endBuild(ctx)
	case errs.HasCode(refused, "disk_full"):
		gone, err = s.deps.Snapshots.Yield(ctx, errs.Missing(refused))
	}
	if err != nil {
		s.deps.Log.Error("cannot make room for a VM", "for", refused, "err", err)
	}
	return gone
}

func (s *Service) endBuild(ctx context.Context) bool {
	return s.deps.Warm != nil && s.deps.Warm.EndBuild(ctx)
}

// dropIdleMemory gives the RAM back of booted guests that no machine shares.
func (s *Service) dropIdleMemory(ctx context.Context) (dropped bool, err error) {
	if s.deps.Warm == nil {
		return false, nil
	}
	shared, err := s.deps.Store.SharedMemory(ctx)
	if err != nil {
		return false, err
	}
	inUse := map[uint64]bool{}
	for _, one := range shared {
		inUse[one.Inode] = true
	}
	return s.deps.Warm.DropIdle(inUse), nil
}
