package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// usageGroup is a group of VMs whose use of a host is added up.
type usageGroup struct {
	Own  bool   `db:"own"`  // VMs of hatchd's own user
	Base string `db:"base"` // JSON of the vmm.Shared that live machines share; "" for none
}

// usage is what VMs use of a host. Memory is that of live VMs, and of sleeping VMs as
// long as it is in the host's RAM.
type usage struct {
	VMs     int64 `db:"vms"`
	MemMiB  int64 `db:"mem_mib"`
	DiskMiB int64 `db:"disk_mib"`
}

func (u usage) plus(v usage) usage {
	return usage{u.VMs + v.VMs, u.MemMiB + v.MemMiB, u.DiskMiB + v.DiskMiB}
}

func (u usage) times(n int64) usage { return usage{u.VMs * n, u.MemMiB * n, u.DiskMiB * n} }

type usageRow struct {
	usageGroup
	usage
}

// usageOfVM returns what one VM uses; the zero VM uses nothing.
func usageOfVM(v vm.VM) (usageGroup, usage) {
	if v.ID == "" {
		return usageGroup{}, usage{}
	}
	group, use := usageGroup{Own: v.OwnerID == access.SystemID}, usage{VMs: 1, DiskMiB: int64(v.DiskMiB)}
	if v.State.Live() || v.State == vm.Snapshotted && v.Sleep != nil && !v.Sleep.Durable {
		use.MemMiB = int64(v.MemMiB)
	}
	if v.State.Live() && v.Machine != nil && v.Machine.Base != (vmm.Shared{}) {
		group.Base, _ = toJSON(v.Machine.Base) // two numbers
	}
	return group, use
}

// moveUsage replaces what a VM of a host used before a change with what it uses after
// it: for its user in any case, of the capacity if the host is this one. Call it
// after all rows of vms are locked, and before events are appended: until the end of the
// transaction it blocks others that change the usage of the same group.
func (t *tx) moveUsage(ctx context.Context, host string, before, after vm.VM) error {
	if host == t.host {
		had, less := usageOfVM(before)
		has, more := usageOfVM(after)
		changes := map[usageGroup]usage{had: less.times(-1)}
		changes[has] = changes[has].plus(more)
		if err := t.addUsage(ctx, changes); err != nil {
			return err
		}
	}
	return moveOwned(ctx, t, host, []vm.VM{before}, []vm.VM{after})
}

func (t *tx) addUsage(ctx context.Context, changes map[usageGroup]usage) error {
	var rows []usageRow
	for group, change := range changes {
		if change != (usage{}) {
			rows = append(rows, usageRow{group, change})
		}
	}
	// In one order, so that two transactions do not wait for each other.
	slices.SortFunc(rows, func(a, b usageRow) int { return cmp.Compare(fmt.Sprint(a.usageGroup), fmt.Sprint(b.usageGroup)) })
	for _, r := range rows {
		_, err := t.exec(ctx, `INSERT INTO capacity_used (host_id, own, base, vms, mem_mib, disk_mib) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (host_id, own, base) DO UPDATE SET vms = capacity_used.vms + excluded.vms,
			mem_mib = capacity_used.mem_mib + excluded.mem_mib, disk_mib = capacity_used.disk_mib + excluded.disk_mib`,
			t.host, r.Own, r.Base, r.VMs, r.MemMiB, r.DiskMiB)
		if err == nil && r.VMs < 0 {
			_, err = t.exec(ctx, "DELETE FROM capacity_used WHERE host_id = ? AND own = ? AND base = ? AND vms = 0", t.host, r.Own, r.Base)
		}
		if err != nil {
			return fmt.Errorf("cannot store the capacity that VMs use: %w", err)
		}
	}
	return nil
}

// usageOf returns the groups of a host, with what they use.
func usageOf(ctx context.Context, q querier, host string) (groups []usageRow, err error) {
	err = selectAll(ctx, q, &groups, "SELECT own, base, vms, mem_mib, disk_mib FROM capacity_used WHERE host_id = ?", host)
	if err != nil {
		return nil, fmt.Errorf("cannot add up the capacity that VMs use: %w", err)
	}
	return groups, nil
}

// basesOf returns the different bases of groups with VMs.
func basesOf(groups []usageRow) (bases []vmm.Shared, err error) {
	for _, g := range groups {
		if g.Base == "" || g.VMs <= 0 {
			continue
		}
		var base vmm.Shared
		if err := fromJSON(g.Base, &base); err != nil {
			return nil, fmt.Errorf("cannot read which memory VMs share: %w", err)
		}
		if !slices.Contains(bases, base) {
			bases = append(bases, base)
		}
	}
	return bases, nil
}

// countUsage adds up what all VMs of this host use of it, and what the VMs of each user
// use of any host: the id of a host may have changed, and its rows with it.
func (t *tx) countUsage(ctx context.Context) error {
	var rows []struct {
		ID      string           `db:"id"`
		HostID  string           `db:"host_id"`
		OwnerID string           `db:"owner_id"`
		State   string           `db:"state"`
		Spec    string           `db:"spec"`
		Machine sql.Null[string] `db:"machine"`
		Durable sql.Null[bool]   `db:"durable"`
	}
	err := selectAll(ctx, t, &rows, `SELECT v.id, v.host_id, v.owner_id, v.state, v.spec, v.machine, s.durable
		FROM vms v LEFT JOIN vm_sleeps s ON s.vm_id = v.id`)
	if err != nil {
		return err
	}
	all, owned := map[usageGroup]usage{}, map[string]map[string]ownedVMs{t.host: {}}
	for _, r := range rows {
		v := vm.VM{ID: r.ID, OwnerID: r.OwnerID, State: vm.State(r.State)}
		if err := errors.Join(fromJSON(r.Machine.V, &v.Machine), fromJSON(r.Spec, &v.Spec)); err != nil {
			return fmt.Errorf("cannot read VM %s: %w", r.ID, err)
		}
		if r.Durable.Valid {
			v.Sleep = &vm.Sleep{Durable: r.Durable.V}
		}
		if r.HostID == t.host {
			group, use := usageOfVM(v)
			all[group] = all[group].plus(use)
		}
		if owned[r.HostID] == nil {
			owned[r.HostID] = map[string]ownedVMs{}
		}
		owned[r.HostID][v.OwnerID] = owned[r.HostID][v.OwnerID].plus(1, ownedByVM(v))
	}
	if _, err := t.exec(ctx, "DELETE FROM capacity_used WHERE host_id = ?", t.host); err != nil {
		return err
	}
	if _, err := t.exec(ctx, "DELETE FROM owned_vms"); err != nil {
		return err
	}
	for host, users := range owned {
		if err := addOwned(ctx, t, host, users); err != nil {
			return err
		}
	}
	return t.addUsage(ctx, all)
}
