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

// sumCapacity adds up the memory of live VMs and the disks of all VMs, without the
// VM of the given id. sumOwn adds up those of hatchd's own VMs only.
var sumCapacity = `SELECT ` + sumMemory + ` AS mem_mib, COALESCE(SUM(disk_mib), 0) AS disk_mib FROM vms WHERE host_id = ? AND id <> ?`

var sumOwn = sumCapacity + ` AND owner_id = '` + access.SystemID + `'`

var sumMemory = `COALESCE(SUM(CASE WHEN state IN (` + liveStates() + `) THEN mem_mib ELSE 0 END), 0)`

// sumAsleep adds up the memory of sleeping VMs that is still in the host's RAM.
var sumAsleep = `SELECT COALESCE(SUM(v.mem_mib), 0) AS mem_mib
	FROM vm_sleeps s JOIN vms v ON v.id = s.vm_id
	WHERE NOT s.durable AND v.host_id = ? AND v.id <> ? AND v.state = '` + string(vm.Snapshotted) + `'`

// selectBased reads the handles of live machines that share memory.
var selectBased = `SELECT machine FROM vms WHERE host_id = ? AND state IN (` + liveStates() + `) AND machine LIKE '%"base":{%'`

func liveStates() string {
	var quoted []string
	for _, s := range []vm.State{vm.Starting, vm.Running, vm.Stopping, vm.Stopped, vm.Snapshotted, vm.Failed, vm.Paused} {
		if s.Live() {
			quoted = append(quoted, "'"+string(s)+"'")
		}
	}
	return strings.Join(quoted, ", ")
}

// checkCapacity returns an error if mem and disk MiB for VM id would exceed the
// limits, given the use of all other VMs. Precondition: this transaction
// has locked the reservations.
func (t *tx) checkCapacity(ctx context.Context, id string, mem, disk int64, limit vm.Capacity) error {
	var used, own capacityRow
	if _, err := t.get(ctx, &used, sumCapacity, t.host, id); err != nil {
		return fmt.Errorf("cannot add up the capacity that VMs use: %w", err)
	}
	if _, err := t.get(ctx, &own, sumOwn, t.host, id); err != nil {
		return fmt.Errorf("cannot add up the capacity that hatchd's own VMs use: %w", err)
	}
	if limit.MemMiB > 0 {
		if err := t.checkMemory(ctx, id, mem, used.MemMiB, own.MemMiB, limit); err != nil {
			return err
		}
	}
	if limit.DiskMiB > 0 && used.DiskMiB+disk > limit.DiskMiB {
		return errs.New(errs.Exhausted, "disk_exhausted",
			"cannot reserve %d MiB of disk: VMs use %d of the %d MiB available to VMs", disk, used.DiskMiB, limit.DiskMiB).
			WithField("disk_mib").WithHint("delete a VM, or request less").
			WithCause(blockedByOwn(used.DiskMiB-own.DiskMiB+disk <= limit.DiskMiB))
	}
	return nil
}

// capacityRow is the capacity that VMs use.
type capacityRow struct {
	MemMiB  int64 `db:"mem_mib"`
	DiskMiB int64 `db:"disk_mib"`
}

// blockedByOwn returns [vm.ErrOwnInTheWay] if the request would fit without hatchd's
// own VMs.
func blockedByOwn(fits bool) error {
	if fits {
		return vm.ErrOwnInTheWay
	}
	return nil
}

// checkMemory adds to the memory of live VMs, including hatchd's own, the other
// memory in the host's RAM that belongs to VMs: of sleeping VMs and of shared bases.
func (t *tx) checkMemory(ctx context.Context, id string, mem, live, own int64, limit vm.Capacity) error {
	var asleep struct {
		MemMiB int64 `db:"mem_mib"`
	}
	if _, err := t.get(ctx, &asleep, sumAsleep, t.host, id); err != nil {
		return fmt.Errorf("cannot add up the memory of sleeping VMs: %w", err)
	}
	bases, err := sharedMemory(ctx, t, t.host)
	if err != nil {
		return err
	}
	mapped := sumShared(bases) // in use by clones, so hatchd cannot free it
	if limit.Bases != nil {
		bases = append(bases, limit.Bases()...)
	}
	used, shared := live+asleep.MemMiB, sumShared(bases)
	if used+shared+mem <= limit.MemMiB {
		return nil
	}
	return errs.New(errs.Exhausted, "memory_exhausted",
		"cannot reserve %d MiB of memory: running VMs use %d MiB and shared clone memory %d of the %d MiB available to VMs", mem, used, shared, limit.MemMiB).
		WithField("mem_mib").WithHint("stop or delete a VM, or request less").
		WithCause(blockedByOwn(used-own+mapped+mem <= limit.MemMiB))
}

// CheckMemory implements [vm.Store].
func (s *vmStore) CheckMemory(ctx context.Context, v vm.VM, limit vm.Capacity) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil {
			return fmt.Errorf("cannot add up the capacity that VMs use: %w", err)
		}
		return tx.checkCapacity(ctx, v.ID, int64(v.MemMiB), 0, vm.Capacity{MemMiB: limit.MemMiB, Bases: limit.Bases})
	})
}

// SharedMemory implements [vm.Store].
func (s *vmStore) SharedMemory(ctx context.Context) ([]vmm.Shared, error) {
	return sharedMemory(ctx, s.reads, s.host)
}

func sharedMemory(ctx context.Context, q querier, host string) (all []vmm.Shared, err error) {
	var machines []string
	if err := selectAll(ctx, q, &machines, selectBased, host); err != nil {
		return nil, fmt.Errorf("cannot read which memory VMs share: %w", err)
	}
	seen := map[vmm.Shared]bool{}
	for _, machine := range machines {
		var h vmm.Handle
		if err := json.Unmarshal([]byte(machine), &h); err != nil {
			return nil, fmt.Errorf("cannot read which memory VMs share: %w", err)
		}
		if !seen[h.Base] {
			seen[h.Base] = true
			all = append(all, h.Base)
		}
	}
	return all, nil
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
