package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/vm"
)

// ownedVMs is what VMs of one user use of a host.
type ownedVMs struct {
	VMs     int64 `db:"vms"`
	VCPUs   int64 `db:"vcpus"`
	MemMiB  int64 `db:"memory_mib"`
	DiskMiB int64 `db:"disk_mib"`
}

// plus adds n times another amount.
func (o ownedVMs) plus(n int64, p ownedVMs) ownedVMs {
	return ownedVMs{o.VMs + n*p.VMs, o.VCPUs + n*p.VCPUs, o.MemMiB + n*p.MemMiB, o.DiskMiB + n*p.DiskMiB}
}

// ownedByVM returns what one VM uses; the zero VM uses nothing. One that sleeps uses
// neither CPUs nor memory.
func ownedByVM(v vm.VM) ownedVMs {
	if v.ID == "" {
		return ownedVMs{}
	}
	o := ownedVMs{VMs: 1, DiskMiB: int64(v.DiskMiB)}
	if v.State.Live() {
		o.VCPUs, o.MemMiB = int64(v.VCPUs), int64(v.MemMiB)
	}
	return o
}

// checkVMQuota returns an error if VMs exceed the quota of their user, which is the same
// for all. before are those that are counted already. Precondition: this transaction has
// locked the reservations. Errors: those of checkQuota, because of vm.ErrOwnersVMsInTheWay
// where it would fit if all of the user's other VMs slept.
func checkVMQuota(ctx context.Context, t *tx, before []vm.VM, after ...vm.VM) error {
	var change ownedVMs
	for _, v := range after {
		change = change.plus(1, ownedByVM(v))
	}
	running := change
	for _, v := range before {
		change = change.plus(-1, ownedByVM(v))
	}
	err := t.checkQuota(ctx, after[0].OwnerID, quota.Amounts{
		quota.VMs: change.VMs, quota.VCPUs: change.VCPUs, quota.Memory: change.MemMiB, quota.Disk: change.DiskMiB,
	})
	e, exceeded := errs.As(err)
	if !exceeded || e.Code != quota.Code {
		return err
	}
	own, limitsErr := ownLimits(ctx, t, after[0].OwnerID)
	limits := t.limits.With(own)
	alone := limits.Check(nil, quota.Amounts{quota.VCPUs: running.VCPUs, quota.Memory: running.MemMiB})
	stays := quota.Amounts{quota.VMs: change.VMs, quota.Disk: change.DiskMiB} // also while they sleep
	used, usedErr := owned(ctx, t, after[0].OwnerID, stays)
	if limitsErr = errors.Join(limitsErr, usedErr); limitsErr == nil && alone == nil && limits.Check(used, stays) == nil && (e.Field == string(quota.VCPUs) || e.Field == string(quota.Memory)) {
		return e.WithCause(vm.ErrOwnersVMsInTheWay)
	}
	return errors.Join(err, limitsErr)
}

// moveOwned replaces what VMs of a host used before a change with what they use after it.
func moveOwned(ctx context.Context, t *tx, host string, before, after []vm.VM) error {
	changes := map[string]ownedVMs{} // by user
	for _, v := range after {
		changes[v.OwnerID] = changes[v.OwnerID].plus(1, ownedByVM(v))
	}
	for _, v := range before {
		changes[v.OwnerID] = changes[v.OwnerID].plus(-1, ownedByVM(v))
	}
	return addOwned(ctx, t, host, changes)
}

func addOwned(ctx context.Context, t *tx, host string, changes map[string]ownedVMs) error {
	type row struct {
		userID string
		ownedVMs
	}
	var rows []row
	for userID, change := range changes {
		if change != (ownedVMs{}) {
			rows = append(rows, row{userID, change})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.userID, b.userID) }) // as in addUsage
	for _, r := range rows {
		_, err := t.exec(ctx, `INSERT INTO owned_vms (host_id, owner_id, vms, vcpus, memory_mib, disk_mib) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (owner_id, host_id) DO UPDATE SET vms = owned_vms.vms + excluded.vms, vcpus = owned_vms.vcpus + excluded.vcpus,
			memory_mib = owned_vms.memory_mib + excluded.memory_mib, disk_mib = owned_vms.disk_mib + excluded.disk_mib`,
			host, r.userID, r.VMs, r.VCPUs, r.MemMiB, r.DiskMiB)
		if err == nil && r.VMs < 0 {
			_, err = t.exec(ctx, "DELETE FROM owned_vms WHERE host_id = ? AND owner_id = ? AND vms = 0", host, r.userID)
		}
		if err != nil {
			return fmt.Errorf("cannot store what the VMs of a user use: %w", err)
		}
	}
	return nil
}
