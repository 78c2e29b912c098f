package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

var updateSpec = updateVM("name", "mem_mib", "spec", "ports", "updated_at")

// ReviseVM implements [vm.Reviser].
func (s *vmStore) ReviseVM(ctx context.Context, scope access.Scope, id string, pools network.Pools, change func(*vm.VM) error) (stored vm.VM, err error) {
	if !storable(id) {
		return vm.VM{}, noVM(id)
	}
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil { // before the VM, as in all transactions
			return fmt.Errorf("cannot reserve: %w", err)
		}
		row, _, err := tx.lockVM(ctx, id)
		if err != nil {
			return err
		}
		before, err := oneVM(ctx, tx, tx.keys, scope, id)
		if err != nil {
			return err
		}
		v := own(before)
		if err := change(&v); err != nil {
			return err
		}
		if err := checkVMQuota(ctx, tx, []vm.VM{before}, v); err != nil {
			return err
		}
		if err := tx.revisePorts(ctx, &row, v, pools); err != nil {
			return err
		}
		if err := tx.reviseVM(ctx, row, v); err != nil {
			return err
		}
		if stored, err = oneVM(ctx, tx, tx.keys, scope, id); err != nil {
			return err
		}
		tx.renamed = before.Name != stored.Name || before.ImplicitRoutes != stored.ImplicitRoutes
		if err := tx.moveUsage(ctx, row.HostID, before, stored); err != nil {
			return err
		}
		return tx.appendEvents(ctx, vm.Changes(before, stored))
	})
	return stored, err
}

// revisePorts leases the ports that a VM with a lease publishes, and releases others.
func (t *tx) revisePorts(ctx context.Context, row *vmRow, v vm.VM, pools network.Pools) (err error) {
	if v.Lease.UID == 0 { // it gets them with its next lease
		return nil
	}
	if err := t.freeReleased(ctx, pools); err != nil {
		return err
	}
	before, had := *row, map[int]int{}
	if err := fromJSON(row.Ports, &had); err != nil {
		return err
	}
	lease := v.Lease
	if lease.Ports, err = t.leasePorts(ctx, v, had, pools); err != nil {
		return err
	}
	if err := row.setLease(lease); err != nil {
		return err
	}
	return t.moveNumbers(ctx, before, *row)
}

// reviseVM stores the name and the spec, but not the user data.
func (t *tx) reviseVM(ctx context.Context, row vmRow, v vm.VM) (err error) {
	spec := v.Spec
	spec.UserData = "" // in a column of its own
	row.Name, row.MemMiB, row.UpdatedAt = v.Name, v.MemMiB, micros(time.Now())
	if row.Spec, err = toJSON(spec); err != nil {
		return err
	}
	_, err = t.NamedExecContext(ctx, updateSpec, row)
	switch {
	case violated(err) == "vms_owner_id_name":
		return errs.New(errs.Conflict, "name_taken", "name: another VM is called %q", v.Name).
			WithField("name").WithHint("give another name, or delete that VM").WithCause(err)
	case err != nil:
		return fmt.Errorf("cannot store the VM: %w", err)
	}
	if _, err := t.exec(ctx, "DELETE FROM vm_labels WHERE vm_id = ?", v.ID); err != nil {
		return fmt.Errorf("cannot replace the VM's labels: %w", err)
	}
	return t.insertLabels(ctx, v)
}
