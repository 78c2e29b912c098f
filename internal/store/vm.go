package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ vm.Store = (*Store)(nil)

// CreateVM implements [vm.Store].
func (s *Store) CreateVM(ctx context.Context, v vm.VM, want vm.Wanted, pools vm.Pools, limit vm.Capacity, idem vm.Idempotency) (stored vm.VM, created bool, err error) {
	all, created, err := s.create(ctx, []vm.VM{v}, want, pools, limit, idem)
	if err != nil {
		return vm.VM{}, false, err
	}
	return all[0], created, nil
}

// CreateVMs implements [vm.Store].
func (s *Store) CreateVMs(ctx context.Context, vms []vm.VM, pools vm.Pools, limit vm.Capacity, idem vm.Idempotency) (stored []vm.VM, created bool, err error) {
	return s.create(ctx, vms, vm.Wanted{}, pools, limit, idem)
}

// create stores all of them or none. The key, if there is one, is the first's.
func (s *Store) create(ctx context.Context, vms []vm.VM, want vm.Wanted, pools vm.Pools, limit vm.Capacity, idem vm.Idempotency) (stored []vm.VM, created bool, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.takeTurn(ctx); err != nil {
			return fmt.Errorf("cannot reserve: %w", err)
		}
		earlier, found, err := vmByKey(ctx, tx, vms[0].OwnerID, idem, pools.IdempotencyReach)
		stored, created = []vm.VM{earlier}, false
		if found || err != nil {
			return err
		}
		if stored, err = tx.createVMs(ctx, vms, want, pools, limit); err != nil {
			return err
		}
		created = true
		return tx.remember(ctx, vms[0], idem, pools.IdempotencyReach)
	})
	if err != nil {
		return nil, false, err
	}
	return stored, created, nil
}

func (t *tx) createVMs(ctx context.Context, vms []vm.VM, want vm.Wanted, pools vm.Pools, limit vm.Capacity) (stored []vm.VM, err error) {
	var mem, disk int64
	for _, v := range vms {
		mem, disk = mem+int64(v.MemMiB), disk+int64(v.DiskMiB)
	}
	if err := t.checkCapacity(ctx, vms[0].ID, mem, disk, limit); err != nil {
		return nil, err
	}
	var events []event.Event
	for _, v := range vms {
		if v, err = t.createVM(ctx, v, want, pools); err != nil {
			return nil, err
		}
		stored, events = append(stored, v), append(events, vm.CreatedEvent(v))
	}
	return stored, t.appendEvents(ctx, events)
}

func (t *tx) createVM(ctx context.Context, v vm.VM, want vm.Wanted, pools vm.Pools) (vm.VM, error) {
	lease, tapNumber, err := t.lease(ctx, v, want, pools)
	if err != nil {
		return vm.VM{}, err
	}
	v.Lease = lease
	row, err := rowOf(v)
	if err != nil {
		return vm.VM{}, err
	}
	row.TapNumber = tapNumber
	if err := t.insertVM(ctx, row, v); err != nil {
		return vm.VM{}, err
	}
	return row.vm(v.Labels)
}

func (t *tx) insertVM(ctx context.Context, row vmRow, v vm.VM) error {
	_, err := t.NamedExecContext(ctx, insertVM, row)
	switch {
	case violated(err) == "vms_owner_id_name":
		return errs.New(errs.Conflict, "name_taken", "name: another VM is called %q", v.Name).
			WithField("name").WithHint("give another name, or delete that VM").WithCause(err)
	case referenceFailed(err):
		return errs.New(errs.NotFound, "image_not_found", "there is no image %s any more", v.ImageID).WithCause(err)
	case err != nil:
		return fmt.Errorf("cannot store the VM: %w", err)
	}
	for label, value := range v.Labels {
		if _, err := t.exec(ctx, "INSERT INTO vm_labels (vm_id, label, value) VALUES (?, ?, ?)", v.ID, label, value); err != nil {
			return fmt.Errorf("cannot store the VM's labels: %w", err)
		}
	}
	return nil
}

// LeaseVM implements [vm.Store].
func (s *Store) LeaseVM(ctx context.Context, id string, pools vm.Pools, limit vm.Capacity) (stored vm.VM, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.takeTurn(ctx); err != nil {
			return fmt.Errorf("cannot reserve: %w", err)
		}
		row, err := tx.lockVM(ctx, id)
		if err != nil {
			return err
		}
		v, err := row.vm(nil)
		if err != nil {
			return err
		}
		// The disk is not asked for again: the row has counted all along.
		if err := tx.checkCapacity(ctx, v.ID, int64(v.MemMiB), 0, vm.Capacity{MemMiB: limit.MemMiB, Bases: limit.Bases}); err != nil {
			return err
		}
		if err := tx.renewLease(ctx, row, v, pools); err != nil {
			return err
		}
		if stored, err = oneVM(ctx, tx, "", id); err != nil {
			return err
		}
		return tx.appendEvents(ctx, vm.Changes(v, stored))
	})
	return stored, err
}

// renewLease stores that the VM starts, with a lease that is whole. An SSH
// port that another program has taken meanwhile is exchanged.
func (t *tx) renewLease(ctx context.Context, row vmRow, v vm.VM, pools vm.Pools) error {
	if whole(v) && v.EnableNetwork && pools.SSHBusy != nil && pools.SSHBusy(v.Lease.SSHPort) {
		port, err := t.sshPort(ctx, pools)
		if err != nil {
			return err
		}
		v.Lease.SSHPort = port
		row.setLease(v.Lease)
	}
	if !whole(v) {
		want, err := t.formerLease(ctx, row, pools)
		if err != nil {
			return err
		}
		lease, tapNumber, err := t.lease(ctx, v, want, pools)
		if err != nil {
			return err
		}
		row.setLease(lease)
		row.TapNumber = tapNumber
	}
	row.State, row.StateReason = string(vm.Starting), ""
	row.UpdatedAt = micros(time.Now())
	if _, err := t.NamedExecContext(ctx, updateLease, row); err != nil {
		return fmt.Errorf("cannot store the lease: %w", err)
	}
	return nil
}

// ReleaseVM implements [vm.Store]. Address and MAC are kept as those to try
// first when the VM is leased again.
func (s *Store) ReleaseVM(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, `UPDATE vms SET
			last_guest_ip = COALESCE(guest_ip, last_guest_ip), last_guest_mac = COALESCE(guest_mac, last_guest_mac),
			guest_ip = NULL, guest_mac = NULL, tap_number = NULL, tap_name = NULL, ssh_port = NULL, uid = NULL,
			updated_at = ?, revision = revision + 1
			WHERE id = ?`, micros(time.Now()), id)
		if err != nil {
			return fmt.Errorf("cannot release the lease: %w", err)
		}
		return nil
	})
}

// VM implements [vm.Store].
func (s *Store) VM(ctx context.Context, owner, id string) (vm.VM, error) {
	if !storable(owner, id) {
		return vm.VM{}, noVM(id)
	}
	return oneVM(ctx, s.reads, owner, id)
}

// AllVMs implements [vm.Store].
func (s *Store) AllVMs(ctx context.Context) ([]vm.VM, error) {
	return selectVMs(ctx, s.reads, selectVM+" ORDER BY created_at, id")
}

// UpdateVM implements [vm.Store].
func (s *Store) UpdateVM(ctx context.Context, id string, change func(*vm.VM)) (stored vm.VM, err error) {
	err = s.write(ctx, func(tx *tx) error {
		// The write lock on the row comes before the reading, so that no change
		// in between is lost.
		row, err := tx.lockVM(ctx, id)
		if err != nil {
			return err
		}
		labels, err := labelsOf(ctx, tx, []string{id})
		if err != nil {
			return err
		}
		read, err := row.vm(labels[id])
		if err != nil {
			return err
		}
		found := []vm.VM{read}
		if err := addSleeps(ctx, tx, found); err != nil {
			return err
		}
		before, v := found[0], found[0]
		change(&v)
		if err := row.setObserved(v); err != nil {
			return err
		}
		row.UpdatedAt = micros(time.Now())
		if _, err := tx.NamedExecContext(ctx, updateObserved, row); err != nil {
			return fmt.Errorf("cannot store the VM: %w", err)
		}
		if !sameSleep(before.Sleep, v.Sleep) {
			if err := tx.setSleep(ctx, v); err != nil {
				return err
			}
		}
		if stored, err = row.vm(labels[id]); err != nil {
			return err
		}
		stored.Sleep = v.Sleep
		return tx.appendEvents(ctx, vm.Changes(before, stored))
	})
	return stored, err
}

// lockVM reads the row and keeps everybody else from changing it.
func (t *tx) lockVM(ctx context.Context, id string) (vmRow, error) {
	n, err := t.exec(ctx, "UPDATE vms SET revision = revision + 1 WHERE id = ?", id)
	if err != nil {
		return vmRow{}, fmt.Errorf("cannot lock the VM: %w", err)
	}
	if n == 0 {
		return vmRow{}, noVM(id)
	}
	var row vmRow
	_, err = t.get(ctx, &row, selectVM+" WHERE id = ?", id)
	return row, err
}

// DeleteVM implements [vm.Store].
func (s *Store) DeleteVM(ctx context.Context, id string) error {
	err := s.write(ctx, func(tx *tx) error { return tx.deleteVM(ctx, id) })
	if err != nil {
		return fmt.Errorf("cannot delete the VM: %w", err)
	}
	s.listed.forget(id)
	return nil
}

func (t *tx) deleteVM(ctx context.Context, id string) error {
	v, err := oneVM(ctx, t, "", id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if n, err := t.exec(ctx, "DELETE FROM vms WHERE id = ?", id); n == 0 || err != nil {
		return err // somebody else was quicker, and has told of it
	}
	return t.appendEvents(ctx, []event.Event{vm.DeletedEvent(v)})
}

func noVM(id string) error {
	return errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id).
		WithHint("GET /vms lists them")
}

// oneVM reads one VM; an empty owner stands for every owner.
func oneVM(ctx context.Context, q querier, owner, id string) (vm.VM, error) {
	query, args := selectVM+" WHERE id = ?", []any{id}
	if owner != "" {
		query, args = query+" AND owner_id = ?", append(args, owner)
	}
	found, err := selectVMs(ctx, q, query, args...)
	if err != nil {
		return vm.VM{}, err
	}
	if len(found) == 0 {
		return vm.VM{}, noVM(id)
	}
	return found[0], nil
}

func selectVMs(ctx context.Context, q querier, query string, args ...any) ([]vm.VM, error) {
	var rows []vmRow
	if err := selectAll(ctx, q, &rows, query, args...); err != nil {
		return nil, fmt.Errorf("cannot read VMs: %w", err)
	}
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	labels, err := labelsOf(ctx, q, ids)
	if err != nil {
		return nil, err
	}
	vms := make([]vm.VM, len(rows))
	for i := range rows {
		if vms[i], err = rows[i].vm(labels[rows[i].ID]); err != nil {
			return nil, err
		}
	}
	return vms, addSleeps(ctx, q, vms)
}
