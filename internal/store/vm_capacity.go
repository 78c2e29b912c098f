package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// sumCapacity adds up what all VMs but one take: memory of those that are
// live, disk of all.
var sumCapacity = `SELECT
	COALESCE(SUM(CASE WHEN state IN (` + liveStates() + `) THEN mem_mib ELSE 0 END), 0) AS mem_mib,
	COALESCE(SUM(disk_mib), 0) AS disk_mib
	FROM vms WHERE id <> ?`

// sumAsleep adds up the memory of sleeping VMs that is still in the host's RAM.
var sumAsleep = `SELECT COALESCE(SUM(v.mem_mib), 0) AS mem_mib
	FROM vm_sleeps s JOIN vms v ON v.id = s.vm_id
	WHERE NOT s.durable AND v.id <> ? AND v.state = '` + string(vm.Snapshotted) + `'`

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
	if limit == (vm.Capacity{}) {
		return nil
	}
	var used struct {
		MemMiB  int64 `db:"mem_mib"`
		DiskMiB int64 `db:"disk_mib"`
	}
	if _, err := t.get(ctx, &used, sumCapacity, id); err != nil {
		return fmt.Errorf("cannot add up what VMs take: %w", err)
	}
	var asleep struct {
		MemMiB int64 `db:"mem_mib"`
	}
	if _, err := t.get(ctx, &asleep, sumAsleep, id); err != nil {
		return fmt.Errorf("cannot add up what sleeping VMs take: %w", err)
	}
	used.MemMiB += asleep.MemMiB
	if limit.MemMiB > 0 && used.MemMiB+mem > limit.MemMiB {
		return errs.New(errs.Exhausted, "memory_exhausted",
			"cannot reserve %d MiB of memory: running VMs have %d of the %d MiB that VMs may take on this host", mem, used.MemMiB, limit.MemMiB).
			WithField("mem_mib").WithHint("stop or delete a VM, or ask for less")
	}
	if limit.DiskMiB > 0 && used.DiskMiB+disk > limit.DiskMiB {
		return errs.New(errs.Exhausted, "disk_exhausted",
			"cannot reserve %d MiB of disk: VMs have %d of the %d MiB that they may take on this host", disk, used.DiskMiB, limit.DiskMiB).
			WithField("disk_mib").WithHint("delete a VM, or ask for less")
	}
	return nil
}
