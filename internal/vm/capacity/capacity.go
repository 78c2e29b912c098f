// Package capacity decides whether VMs fit on the host, what of hatchd's own is
// evicted for an owner's VM, and when idle VMs have to sleep for it.
//
// It counts nothing itself: the store sums what VMs take inside the transaction
// that adds one, checks quotas there, and internal/host/capacity reads what the host
// has. Start at [Service.EvictFor].
package capacity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Host says what the host has.
type Host interface {
	// MemMiB returns the memory that all VMs may take together, overcommit included.
	MemMiB() int64
	// DiskMiB returns the disk that all VMs' disks may take together, overcommit included.
	DiskMiB() (int64, error)
}

// Disks evicts snapshots.
type Disks interface {
	// Yield removes one of hatchd's own snapshots and reports whether it did, so
	// that the missing bytes may be free; 0 means unknown.
	Yield(ctx context.Context, missing int64) (yielded bool, err error)
}

// WarmPool evicts what the warm pool holds.
type WarmPool interface {
	// DropIdle frees base memory that no machine maps, and reports whether there
	// was any. inUse holds the inodes of bases that machines map.
	DropIdle(inUse map[uint64]bool) (dropped bool)
	// EndBuild ends the build of a warm snapshot, and reports whether one ran.
	EndBuild(ctx context.Context) (ended bool)
}

// Evictor puts owners' idle VMs to sleep.
type Evictor interface {
	// Evict puts the VM to sleep that has been idle for longest, among those in scope that
	// may be and that have no operation, and reports whether there was one.
	Evict(ctx context.Context, scope access.Scope) (evicted bool, err error)
}

// Store counts what VMs take.
type Store interface {
	vm.Leaser
	vm.MemoryCounter
}

// Config is what the service needs. All fields but Warm and Idle are required.
type Config struct {
	Store Store
	Host  Host
	Disks Disks
	Warm  WarmPool            // nil: there is no warm pool
	Idle  Evictor             // nil: no VM is put to sleep for another, and none waited for
	Bases func() []vmm.Shared // memory that hatchd holds for machines to map
	Pools network.Pools
	Log   *slog.Logger
}

// Service answers whether VMs fit.
type Service struct {
	cfg    Config
	closed atomic.Bool
	turn   chan struct{} // full while a request puts idle VMs to sleep

	persisted func(ctx context.Context) (bool, error) // see OnPersist
}

// New returns a service.
func New(cfg Config) *Service { return &Service{cfg: cfg, turn: make(chan struct{}, 1)} }

// OnPersist sets what waits until the memory of one more sleeping VM is on disk, and so
// free, and reports whether any was on its way there. Its error is ctx's. Call it before
// the first request.
func (s *Service) OnPersist(wait func(ctx context.Context) (bool, error)) { s.persisted = wait }

// Close lets no VM be created, started, woken or restored any more: the host is
// shutting down. Errors from now on: errs.Unavailable with code host_shutting_down.
func (s *Service) Close() { s.closed.Store(true) }

// rebootTime is when to try again on a host that shuts down.
const rebootTime = time.Minute

// CheckOpen returns an error after Close: that of all starts.
func (s *Service) CheckOpen() error {
	if s.closed.Load() {
		return errs.New(errs.Unavailable, "host_shutting_down", "cannot start VMs: the host is shutting down").WithRetryAfter(rebootTime).
			WithHint("try again once it has started")
	}
	return nil
}

// Reserve calls take with what all VMs may take of the host now; it evicts and
// calls it again as EvictFor does. Errors: take's, and Close's.
func (s *Service) Reserve(ctx context.Context, ownerID string, take func(limit vm.Capacity) error) error {
	if err := s.CheckOpen(); err != nil {
		return err
	}
	return s.EvictFor(ctx, ownerID, func() error {
		disk, err := s.cfg.Host.DiskMiB()
		if err != nil {
			return fmt.Errorf("cannot read the free disk space: %w", err)
		}
		limit := s.memoryLimit()
		limit.DiskMiB = disk
		return take(limit)
	})
}

// memoryLimit is the limit for a VM whose disk exists already.
func (s *Service) memoryLimit() vm.Capacity {
	return vm.Capacity{MemMiB: s.cfg.Host.MemMiB(), Bases: s.cfg.Bases}
}

// LeaseToStart reserves what a VM without a machine needs to boot.
// Errors: as vm.Leaser's, and Close's.
func (s *Service) LeaseToStart(ctx context.Context, v vm.VM) (leased vm.VM, err error) {
	err = s.Reserve(ctx, v.OwnerID, func(limit vm.Capacity) error {
		leased, err = s.cfg.Store.LeaseVM(ctx, v.ID, s.poolsFor(v), limit)
		return err
	})
	return leased, err
}

// LeaseToWake reserves what a sleeping VM needs to wake: its disk is counted
// already. Errors: as vm.Leaser's, and Close's.
func (s *Service) LeaseToWake(ctx context.Context, v vm.VM) (leased vm.VM, err error) {
	if err := s.CheckOpen(); err != nil {
		return vm.VM{}, err
	}
	err = s.EvictFor(ctx, v.OwnerID, func() error {
		leased, err = s.cfg.Store.LeaseVM(ctx, v.ID, s.poolsFor(v), s.memoryLimit())
		return err
	})
	return leased, err
}

// poolsFor returns the pools for a VM's next lease. hatchd itself listens on a
// sleeping VM's port, so that one is not busy.
func (s *Service) poolsFor(v vm.VM) network.Pools {
	pools := s.cfg.Pools
	if v.Asleep() {
		pools.PortBusy = nil
	}
	return pools
}

// CheckMemory returns an error unless the VM's memory, counted already or not,
// fits beside everything else. It evicts for it.
// Errors: errs.Exhausted with code memory_exhausted, and Close's.
func (s *Service) CheckMemory(ctx context.Context, v vm.VM) error {
	if err := s.CheckOpen(); err != nil {
		return err
	}
	return s.EvictFor(ctx, v.OwnerID, func() error { return s.cfg.Store.CheckMemory(ctx, v, s.memoryLimit()) })
}

// CheckWarmMemory is CheckMemory for a VM that can boot instead of being cloned:
// it evicts idle memory, but ends no build.
func (s *Service) CheckWarmMemory(ctx context.Context, v vm.VM) error {
	for {
		err := s.cfg.Store.CheckMemory(ctx, v, s.memoryLimit())
		if v.OwnerID == access.SystemID || !errors.Is(err, vm.ErrOwnInTheWay) {
			return err
		}
		if dropped, dropErr := s.dropIdleMemory(ctx); !dropped {
			return errors.Join(err, dropErr)
		}
	}
}

// EvictFor calls take, which reserves something on the host for a user. When
// it does not fit, it evicts what hatchd keeps only to save time, piece by piece,
// and calls take again. hatchd's own user evicts nothing.
//
// The order: for memory, idle bases of the warm pool, then a build in progress, then
// idle VMs, which go to sleep; for disk, warm snapshots. For a quota of running VMs, idle
// VMs of the same user go to sleep.
func (s *Service) EvictFor(ctx context.Context, ownerID string, take func() error) error {
	for {
		err := take()
		switch {
		case err == nil || ownerID == access.SystemID:
			return err
		case s.evictOwn(ctx, err):
		case s.cfg.Idle != nil && (errors.Is(err, vm.ErrVMsInTheWay) || errors.Is(err, vm.ErrOwnersVMsInTheWay)):
			return s.evictIdle(ctx, ownerID, err, take)
		default:
			return err
		}
	}
}

// evictTimeout bounds how long a request waits for idle VMs to fall asleep: it holds the
// lock of its own VM, and the operation of another may wait for that.
const evictTimeout = time.Minute

// evictIdle is EvictFor for what was refused, and what idle VMs may leave. One
// request at a time puts VMs to sleep: those that wait for their turn take what it has
// left over, before they do so, too.
func (s *Service) evictIdle(ctx context.Context, ownerID string, refused error, take func() error) error {
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return refused
	}
	defer func() { <-s.turn }()
	for {
		err := take()
		switch {
		case err == nil:
			return nil
		case s.evictOwn(ctx, err):
		case errors.Is(err, vm.ErrOwnersVMsInTheWay) && s.evictOwners(ctx, ownerID):
		case !errors.Is(err, vm.ErrVMsInTheWay) || !s.freeIdle(ctx):
			return err
		}
	}
}

// evictOwners puts an idle VM of a user to sleep, and reports whether there was one.
func (s *Service) evictOwners(ctx context.Context, ownerID string) (evicted bool) {
	evicted, err := s.cfg.Idle.Evict(ctx, access.Owner(ownerID))
	if err != nil {
		s.cfg.Log.Error("cannot put idle vms of a user to sleep", logkey.Error, err)
	}
	return evicted
}

// freeIdle reports whether the memory of a VM that sleeps has become free. VMs that sleep
// already come before one more is put to sleep.
func (s *Service) freeIdle(ctx context.Context) (freed bool) {
	freed, err := s.persisted(ctx)
	if !freed && err == nil {
		freed, err = s.cfg.Idle.Evict(ctx, access.Everyone)
	}
	if err != nil {
		s.cfg.Log.Error("cannot put idle vms to sleep to free memory", logkey.Error, err)
	}
	return freed
}

// evictOwn evicts something of hatchd's own, and reports whether what was refused may fit
// now.
func (s *Service) evictOwn(ctx context.Context, refused error) (evicted bool) {
	var err error
	switch {
	case errors.Is(refused, vm.ErrOwnInTheWay): // else eviction would not help
		if errs.HasCode(refused, "memory_exhausted") {
			evicted, err = s.dropIdleMemory(ctx)
		}
		evicted = evicted || (s.cfg.Warm != nil && s.cfg.Warm.EndBuild(ctx))
	case errs.HasCode(refused, "disk_full"):
		evicted, err = s.cfg.Disks.Yield(ctx, errs.Missing(refused))
	}
	if err != nil {
		s.cfg.Log.Error("cannot evict to free capacity", "refused", refused, logkey.Error, err)
	}
	return evicted
}

// dropIdleMemory frees base memory of the warm pool that no machine maps.
func (s *Service) dropIdleMemory(ctx context.Context) (dropped bool, err error) {
	if s.cfg.Warm == nil {
		return false, nil
	}
	shared, err := s.cfg.Store.SharedMemory(ctx)
	if err != nil {
		return false, err
	}
	inUse := map[uint64]bool{}
	for _, base := range shared {
		inUse[base.Inode] = true
	}
	return s.cfg.Warm.DropIdle(inUse), nil
}
