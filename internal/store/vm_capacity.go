package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// checkCapacity returns an error if mem and disk MiB would exceed the limits, given the
// use of all VMs without the given one. Precondition: this transaction has locked the
// reservations.
func (t *tx) checkCapacity(ctx context.Context, without vm.VM, mem, disk int64, limit vm.Capacity) error {
	groups, err := usageOf(ctx, t, t.host)
	if err != nil {
		return err
	}
	group, use := usageOfVM(without)
	groups = append(groups, usageRow{group, use.times(-1)})
	var used, own usage
	for _, g := range groups {
		used = used.plus(g.usage)
		if g.Own {
			own = own.plus(g.usage)
		}
	}
	if limit.MemMiB > 0 {
		bases, err := basesOf(groups)
		if err != nil {
			return err
		}
		if err := checkMemory(mem, used.MemMiB, own.MemMiB, bases, limit); err != nil {
			return err
		}
	}
	if limit.DiskMiB > 0 && used.DiskMiB+disk > limit.DiskMiB {
		return errs.New(errs.Exhausted, "disk_exhausted",
			"cannot reserve %d MiB of disk: VMs use %d of the %d MiB available to VMs", disk, used.DiskMiB, limit.DiskMiB).
			WithField("disk_mib").WithHint("delete a VM, or request less").
			WithCause(causeIf(used.DiskMiB-own.DiskMiB+disk <= limit.DiskMiB, vm.ErrOwnInTheWay))
	}
	return nil
}

// causeIf returns what is in the way of a request if it would fit without that.
func causeIf(fits bool, inTheWay error) error {
	if fits {
		return inTheWay
	}
	return nil
}

// checkMemory adds to the memory that VMs use, including hatchd's own, that of shared
// bases.
func checkMemory(mem, used, own int64, bases []vmm.Shared, limit vm.Capacity) error {
	mapped := sumShared(bases) // in use by clones, so hatchd cannot free it
	if limit.Bases != nil {
		bases = append(bases, limit.Bases()...)
	}
	shared := sumShared(bases)
	if used+shared+mem <= limit.MemMiB {
		return nil
	}
	return errs.New(errs.Exhausted, "memory_exhausted",
		"cannot reserve %d MiB of memory: running VMs use %d MiB and shared clone memory %d of the %d MiB available to VMs", mem, used, shared, limit.MemMiB).
		WithField("mem_mib").WithHint("stop or delete a VM, or request less").
		WithCause(errors.Join(causeIf(used-own+mapped+mem <= limit.MemMiB, vm.ErrOwnInTheWay), causeIf(mem <= limit.MemMiB, vm.ErrVMsInTheWay)))
}

// CheckMemory implements [vm.Store].
func (s *vmStore) CheckMemory(ctx context.Context, v vm.VM, limit vm.Capacity) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil {
			return fmt.Errorf("cannot add up the capacity that VMs use: %w", err)
		}
		stored, err := oneVM(ctx, tx, tx.keys, access.Everyone, v.ID)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		if stored.ID != "" { // else its creation checks it
			running := stored
			running.State = vm.Running
			if err := checkVMQuota(ctx, tx, []vm.VM{stored}, running); err != nil {
				return err
			}
		}
		return tx.checkCapacity(ctx, stored, int64(v.MemMiB), 0, vm.Capacity{MemMiB: limit.MemMiB, Bases: limit.Bases})
	})
}

// SharedMemory implements [vm.Store].
func (s *vmStore) SharedMemory(ctx context.Context) ([]vmm.Shared, error) {
	groups, err := usageOf(ctx, s.reads, s.host)
	if err != nil {
		return nil, err
	}
	return basesOf(groups)
}

// sumShared returns the total in MiB, rounded up. Files with the same inode count
// once.
func sumShared(all []vmm.Shared) int64 {
	var bytes int64
	seen := map[uint64]bool{}
	for _, shared := range all {
		if shared.Inode == 0 || !seen[shared.Inode] {
			bytes += shared.Bytes
		}
		seen[shared.Inode] = true
	}
	return (bytes + 1<<20 - 1) >> 20
}
