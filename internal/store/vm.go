package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ vm.Store = (*Store)(nil)

// CreateVM implements [vm.Store].
func (s *vmStore) CreateVM(ctx context.Context, v vm.VM, want network.Request, pools network.Pools, limit vm.Capacity) (vm.VM, error) {
	all, err := s.create(ctx, []vm.VM{v}, want, pools, limit)
	if err != nil {
		return vm.VM{}, err
	}
	return all[0], nil
}

// CreateVMs implements [vm.Store].
func (s *vmStore) CreateVMs(ctx context.Context, vms []vm.VM, pools network.Pools, limit vm.Capacity) ([]vm.VM, error) {
	return s.create(ctx, vms, network.Request{}, pools, limit)
}

// create stores all VMs or none.
func (s *vmStore) create(ctx context.Context, vms []vm.VM, want network.Request, pools network.Pools, limit vm.Capacity) (stored []vm.VM, err error) {
	ids := make([]string, len(vms))
	for i, v := range vms {
		ids[i] = v.ID
	}
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil {
			return fmt.Errorf("cannot reserve: %w", err)
		}
		if err := tx.remember(ctx, vms[0].OwnerID, ids...); err != nil {
			return err
		}
		stored, err = tx.createVMs(ctx, vms, want, pools, limit)
		return err
	})
	return stored, err
}

func (t *tx) createVMs(ctx context.Context, vms []vm.VM, want network.Request, pools network.Pools, limit vm.Capacity) (stored []vm.VM, err error) {
	var mem, disk, links int64
	for _, v := range vms {
		mem, disk, links = mem+int64(v.MemMiB), disk+int64(v.DiskMiB), links+int64(len(v.Routes))
	}
	if err := t.checkQuota(ctx, vms[0].OwnerID, quota.Amounts{quota.Routes: links}); err != nil { // which no VM that sleeps gives up
		return nil, err
	}
	if err := checkVMQuota(ctx, t, nil, vms...); err != nil {
		return nil, err
	}
	if err := t.checkCapacity(ctx, vm.VM{}, mem, disk, limit); err != nil {
		return nil, err
	}
	var events []event.Event
	more := map[usageGroup]usage{}
	for _, v := range vms {
		source, routes := v.ClonedFrom, v.Routes
		if v, err = t.createVM(ctx, v, want, pools); err != nil {
			return nil, err
		}
		group, use := usageOfVM(v)
		more[group] = more[group].plus(use)
		v.ClonedFrom, v.Routes = source, routes
		events = append(events, vm.CreatedEvent(v))
		for i, r := range routes {
			if err := t.insertRoute(ctx, r); err != nil {
				return nil, route.InList(i, err)
			}
			events = append(events, r.About(v.Name, event.RouteCreated))
		}
		t.renamed = t.renamed || v.Name != ""
		stored = append(stored, v)
	}
	if err := t.addUsage(ctx, more); err != nil {
		return nil, err
	}
	if err := moveOwned(ctx, t, t.host, nil, stored); err != nil {
		return nil, err
	}
	return stored, t.appendEvents(ctx, events)
}

func (t *tx) createVM(ctx context.Context, v vm.VM, want network.Request, pools network.Pools) (vm.VM, error) {
	lease, tapNumber, err := t.lease(ctx, v, want, pools)
	if err != nil {
		return vm.VM{}, err
	}
	v.Lease = lease
	row, err := rowOf(t.keys, v)
	if err != nil {
		return vm.VM{}, err
	}
	row.TapNumber = tapNumber
	row.HostID = t.host
	if err := t.insertVM(ctx, row, v); err != nil {
		return vm.VM{}, err
	}
	if err := t.moveNumbers(ctx, vmRow{}, row); err != nil {
		return vm.VM{}, err
	}
	return row.vm(t.keys)
}

func (t *tx) insertVM(ctx context.Context, row vmRow, v vm.VM) error {
	_, err := t.NamedExecContext(ctx, insertVM, row)
	switch {
	case violated(err) == "vms_owner_id_name":
		return errs.New(errs.Conflict, "name_taken", "name: another VM is called %q", v.Name).
			WithField("name").WithHint("give another name, or delete that VM").WithCause(err)
	case referenceFailed(err):
		return errs.New(errs.NotFound, "image_not_found", "image %s does not exist any more", v.ImageID).WithCause(err)
	case err != nil:
		return fmt.Errorf("cannot store the VM: %w", err)
	}
	return t.insertLabels(ctx, v)
}

func (t *tx) insertLabels(ctx context.Context, v vm.VM) error {
	for label, value := range v.Labels {
		if _, err := t.exec(ctx, "INSERT INTO vm_labels (vm_id, label, value) VALUES (?, ?, ?)", v.ID, label, value); err != nil {
			return fmt.Errorf("cannot store the VM's labels: %w", err)
		}
	}
	return nil
}

// LeaseVM implements [vm.Store].
func (s *vmStore) LeaseVM(ctx context.Context, id string, pools network.Pools, limit vm.Capacity) (stored vm.VM, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil {
			return fmt.Errorf("cannot reserve: %w", err)
		}
		row, v, err := tx.lockVM(ctx, id)
		if err != nil {
			return err
		}
		starting := v
		starting.State = vm.Starting
		if err := checkVMQuota(ctx, tx, []vm.VM{v}, starting); err != nil {
			return err
		}
		// Disk is not requested again: the row still reserves it.
		if err := tx.checkCapacity(ctx, v, int64(v.MemMiB), 0, vm.Capacity{MemMiB: limit.MemMiB, Bases: limit.Bases}); err != nil {
			return err
		}
		if err := tx.renewLease(ctx, row, v, pools); err != nil {
			return err
		}
		if stored, err = oneVM(ctx, tx, tx.keys, access.Everyone, id); err != nil {
			return err
		}
		if err := tx.moveUsage(ctx, row.HostID, v, stored); err != nil {
			return err
		}
		return tx.appendEvents(ctx, vm.Changes(v, stored))
	})
	return stored, err
}

// renewLease stores that the VM is starting, with a complete lease. It replaces ports
// that another program uses by now, but for those that the spec names.
func (t *tx) renewLease(ctx context.Context, row vmRow, v vm.VM, pools network.Pools) error {
	if err := t.freeReleased(ctx, pools); err != nil {
		return err
	}
	before := row
	lease := v.Lease
	if whole(v) {
		ports, err := t.renewPorts(ctx, v, pools)
		if err != nil {
			return err
		}
		lease.Ports = ports
		if v.EnableNetwork && pools.PortBusy != nil && pools.PortBusy(lease.SSHPort) {
			if lease.SSHPort, err = t.sshPort(ctx, ports, pools); err != nil {
				return err
			}
		}
	} else {
		want, err := t.formerLease(ctx, row, pools)
		if err != nil {
			return err
		}
		if lease, row.TapNumber, err = t.lease(ctx, v, want, pools); err != nil {
			return err
		}
	}
	if err := row.setLease(lease); err != nil {
		return err
	}
	row.State, row.StateReason = string(vm.Starting), ""
	row.UpdatedAt = micros(time.Now())
	if _, err := t.NamedExecContext(ctx, updateLease, row); err != nil {
		return fmt.Errorf("cannot store the lease: %w", err)
	}
	return t.moveNumbers(ctx, before, row)
}

// ReleaseVM implements [vm.Store]. Address and MAC are stored, to be tried
// first at the next lease of the VM.
func (s *vmStore) ReleaseVM(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *tx) error {
		if err := tx.lockReservations(ctx); err != nil {
			return fmt.Errorf("cannot release the lease: %w", err)
		}
		row, _, err := tx.lockVM(ctx, id)
		if errs.Is(err, errs.NotFound) {
			return nil
		}
		if err == nil {
			err = tx.moveNumbers(ctx, row, vmRow{})
		}
		if err != nil {
			return err
		}
		_, err = tx.exec(ctx, `UPDATE vms SET
			last_guest_ip = COALESCE(guest_ip, last_guest_ip), last_guest_mac = COALESCE(guest_mac, last_guest_mac),
			guest_ip = NULL, guest_mac = NULL, tap_number = NULL, tap_name = NULL, ssh_port = NULL, ports = '', uid = NULL,
			updated_at = ?
			WHERE id = ?`, micros(time.Now()), id)
		if err != nil {
			return fmt.Errorf("cannot release the lease: %w", err)
		}
		return nil
	})
}

// VM implements [vm.Store].
func (s *vmStore) VM(ctx context.Context, scope access.Scope, id string) (v vm.VM, err error) {
	if !storable(id) {
		return vm.VM{}, noVM(id)
	}
	if v, err = oneVM(ctx, s.reads, s.keys, scope, id); err != nil || !mayHaveSleep(v.State) {
		return v, err
	}
	err = s.read(ctx, func(q querier) error { // again, with its saved memory
		v, err = oneVM(ctx, q, s.keys, scope, id)
		return err
	})
	return v, err
}

// AllVMs implements [vm.Store].
func (s *vmStore) AllVMs(ctx context.Context) (all []vm.VM, err error) {
	err = s.read(ctx, func(q querier) error {
		all, err = selectVMs(ctx, q, s.keys, selectListedVM+" WHERE host_id = ? ORDER BY created_at, id", s.host)
		return err
	})
	return all, err
}

// UpdateVM implements [vm.Store].
func (s *vmStore) UpdateVM(ctx context.Context, id string, change func(*vm.VM)) (stored vm.VM, err error) {
	err = s.write(ctx, func(tx *tx) error {
		row, before, err := tx.lockVM(ctx, id)
		if err != nil {
			return err
		}
		v := before
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
		if stored, err = row.vm(tx.keys); err != nil {
			return err
		}
		stored.Sleep = v.Sleep
		if err := tx.moveUsage(ctx, row.HostID, before, stored); err != nil {
			return err
		}
		return tx.appendEvents(ctx, vm.Changes(before, stored))
	})
	return stored, err
}

// lockVM locks the row against changes by other transactions and then reads it, so that
// no concurrent change is lost. User data that cannot be opened is left out: such a VM can
// still be stopped and deleted.
func (t *tx) lockVM(ctx context.Context, id string) (vmRow, vm.VM, error) {
	n, err := t.exec(ctx, "UPDATE vms SET revision = revision + 1 WHERE id = ?", id)
	if err != nil {
		return vmRow{}, vm.VM{}, fmt.Errorf("cannot lock the VM: %w", err)
	}
	if n == 0 {
		return vmRow{}, vm.VM{}, noVM(id)
	}
	var row vmRow
	if _, err := t.get(ctx, &row, selectVM+" WHERE id = ?", id); err != nil {
		return vmRow{}, vm.VM{}, fmt.Errorf("cannot read the VM: %w", err)
	}
	if _, err := t.get(ctx, &row.HostID, "SELECT host_id FROM vms WHERE id = ?", id); err != nil {
		return vmRow{}, vm.VM{}, fmt.Errorf("cannot read the VM's host: %w", err)
	}
	v, err := row.vm(t.keys)
	if errors.Is(err, secret.ErrNotOpened) {
		row.UserData = nil
		v, err = row.vm(t.keys)
	}
	if err != nil {
		return vmRow{}, vm.VM{}, err
	}
	found := []vm.VM{v}
	err = addSleeps(ctx, t, found)
	return row, found[0], err
}

// DeleteVM implements [vm.Store].
func (s *vmStore) DeleteVM(ctx context.Context, id string) error {
	err := s.write(ctx, func(tx *tx) error { return tx.deleteVM(ctx, id) })
	if err != nil {
		return fmt.Errorf("cannot delete the VM: %w", err)
	}
	s.listed.forget(id)
	return nil
}

func (t *tx) deleteVM(ctx context.Context, id string) error {
	if err := t.lockReservations(ctx); err != nil {
		return err
	}
	row, v, err := t.lockVM(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	routes, err := listRoutes(ctx, t, t.keys, selectRoute+" WHERE vm_id = ? ORDER BY created_at, id", id)
	if err != nil {
		return err
	}
	if _, err := t.exec(ctx, "DELETE FROM vms WHERE id = ?", id); err != nil {
		return err
	}
	t.renamed = true
	if v.StartedAt == nil || v.Unconfirmed != "" {
		if err := t.forgetKey(ctx, id); err != nil {
			return err
		}
	}
	if err := t.moveNumbers(ctx, row, vmRow{}); err != nil {
		return err
	}
	if err := t.moveUsage(ctx, row.HostID, v, vm.VM{}); err != nil {
		return err
	}
	var events []event.Event
	for _, r := range routes {
		events = append(events, r.About(v.Name, event.RouteDeleted))
	}
	return t.appendEvents(ctx, append(events, vm.DeletedEvent(v)))
}

func noVM(id string) error {
	return errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id).
		WithHint("GET /vms lists them")
}

func oneVM(ctx context.Context, q querier, keys *secret.Keyring, scope access.Scope, id string) (vm.VM, error) {
	owned, args := inScope(scope)
	found, err := selectVMs(ctx, q, keys, selectVM+" WHERE id = ? AND "+owned, append([]any{id}, args...)...)
	if err != nil {
		return vm.VM{}, err
	}
	if len(found) == 0 {
		return vm.VM{}, noVM(id)
	}
	return found[0], nil
}

func selectVMs(ctx context.Context, q querier, keys *secret.Keyring, query string, args ...any) ([]vm.VM, error) {
	var rows []vmRow
	if err := selectAll(ctx, q, &rows, query, args...); err != nil {
		return nil, fmt.Errorf("cannot read VMs: %w", err)
	}
	vms := make([]vm.VM, len(rows))
	for i := range rows {
		var err error
		if vms[i], err = rows[i].vm(keys); err != nil {
			return nil, err
		}
	}
	return vms, addSleeps(ctx, q, vms)
}
