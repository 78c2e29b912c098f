package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// sumCapacity adds up what all VMs but one take, and what those of hatchd's own
// do of that: memory of those that are live, disk of all.
var sumCapacity = `SELECT ` + sumMemory + ` AS mem_mib, COALESCE(SUM(disk_mib), 0) AS disk_mib FROM vms WHERE id <> ?`

var sumOwn = sumCapacity + ` AND owner_id = '` + access.SystemID + `'`

var sumMemory = `COALESCE(SUM(CASE WHEN state IN (` + liveStates() + `) THEN mem_mib ELSE 0 END), 0)`

// sumAsleep adds up the memory of sleeping VMs that is still in the host's RAM.
var sumAsleep = `SELECT COALESCE(SUM(v.mem_mib), 0) AS mem_mib
	FROM vm_sleeps s JOIN vms v ON v.id = s.vm_id
	WHERE NOT s.durable AND v.id <> ? AND v.state = '` + string(vm.Snapshotted) + `'`

// selectBased reads the handles of live machines that share memory.
var selectBased = `SELECT machine FROM vms WHERE state IN (` + liveStates() + `) AND machine LIKE '%"base":{%'`

func liveStates() string {
	var quoted []string
	for _, s := range []vm.State{vm.Starting, vm.Running, vm.Stopping, vm.Stopped, vm.Snapshotted, vm.Failed, vm.Paused} {
		if s.Live() {
			quoted = append(quoted, "'"+string(s)+"'")
		}
	}
	return strings.Join(quoted, ", ")
}

// checkCapacity refuses so many MiB when the host cannot hold them beside what
// VMs take, but for the one with this id. Precondition: it is this transaction's turn.
func (t *tx) checkCapacity(ctx context.Context, id string, mem, disk int64, limit vm.Capacity) error {
	var used, own capacityRow
	if _, err := t.get(ctx, &used, sumCapacity, id); err != nil {
		return fmt.Errorf("cannot add up what VMs take: %w", err)
	}
	if _, err := t.get(ctx, &own, sumOwn, id); err != nil {
		return fmt.Errorf("cannot add up what hatchd's own VMs take: %w", err)
	}
	if limit.MemMiB > 0 {
		if err := t.checkMemory(ctx, id, mem, used.MemMiB, own.MemMiB, limit); err != nil {
			return err
		}
	}
	if limit.DiskMiB > 0 && used.DiskMiB+disk > limit.DiskMiB {
		return errs.New(errs.Exhausted, "disk_exhausted",
			"cannot reserve %d MiB of disk: VMs have %d of the %d MiB that they may take on this host", disk, used.DiskMiB, limit.DiskMiB).
			WithField("disk_mib").WithHint("delete a VM, or ask for less").
			WithCause(ownInTheWay(used.DiskMiB-own.DiskMiB+disk <= limit.DiskMiB))
	}
	return nil
}

// capacityRow is what VMs take.
type capacityRow struct {
	MemMiB  int64 `db:"mem_mib"`
	DiskMiB int64 `db:"disk_mib"`
}

func ownInTheWay(is bool) error {
	if is {
		return vm.ErrOwnInTheWay
	}
	return nil
}

// checkMemory adds to what live VMs have, hatchd's own among them, what else is
// in the host's RAM for VMs.
func (t *tx) checkMemory(ctx context.Context, id string, mem, live, own int64, limit vm.Capacity) error {
	var asleep struct {
		MemMiB int64 `db:"mem_mib"`
	}
	if _, err := t.get(ctx, &asleep, sumAsleep, id); err != nil {
		return fmt.Errorf("cannot add up what sleeping VMs take: %w", err)
	}
	bases, err := sharedMemory(ctx, t)
	if err != nil {
		return err
	}
	mapped := sumShared(bases) // which nobody can drop
	if limit.Bases != nil {
		bases = append(bases, limit.Bases()...)
	}
	used, shared := live+asleep.MemMiB, sumShared(bases)
	if used+shared+mem <= limit.MemMiB {
		return nil
	}
	return errs.New(errs.Exhausted, "memory_exhausted",
		"cannot reserve %d MiB of memory: running VMs have %d, and what copies share takes %d, of the %d MiB that VMs may take on this host", mem, used, shared, limit.MemMiB).
		WithField("mem_mib").WithHint("stop or delete a VM, or ask for less").
		WithCause(ownInTheWay(used-own+mapped+mem <= limit.MemMiB))
}

// CheckMemory implements [vm.Store].
func (s *Store) CheckMemory(ctx context.Context, v vm.VM, limit vm.Capacity) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.takeTurn(ctx); err != nil {
			return fmt.Errorf("cannot add up what VMs take: %w", err)
		}
		return tx.checkCapacity(ctx, v.ID, int64(v.MemMiB), 0, vm.Capacity{MemMiB: limit.MemMiB, Bases: limit.Bases})
	})
}

// SharedMemory implements [vm.Store].
func (s *Store) SharedMemory(ctx context.Context) ([]vmm.Shared, error) {
	return sharedMemory(ctx, s.reads)
}

func sharedMemory(ctx context.Context, q querier) (all []vmm.Shared, err error) {
	var machines []string
	if err := selectAll(ctx, q, &machines, selectBased); err != nil {
		return nil, fmt.Errorf("cannot read what VMs share: %w", err)
	}
	seen := map[vmm.Shared]bool{}
	for _, machine := range machines {
		var h vmm.Handle
		if err := json.Unmarshal([]byte(machine), &h); err != nil {
			return nil, fmt.Errorf("cannot read what VMs share: %w", err)
		}
		if !seen[h.Base] {
			seen[h.Base] = true
			all = append(all, h.Base)
		}
	}
	return all, nil
}

// sumShared returns how many MiB it takes, rounded up. What has an inode counts
// once.
func sumShared(all []vmm.Shared) int64 {
	var bytes int64
	seen := map[uint64]bool{}
	for _, one := range all {
		if one.Inode == 0 || !seen[one.Inode] {
			bytes += one.Bytes
		}
		seen[one.Inode] = true
	}
	return (bytes + 1<<20 - 1) >> 20
}
