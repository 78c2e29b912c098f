package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/vm"
)

// sleepRow describes the saved memory of a sleeping VM.
type sleepRow struct {
	VMID    string `db:"vm_id"`
	SleptAt int64  `db:"slept_at"`
	Durable bool   `db:"durable"`
	Bytes   int64  `db:"bytes"`
	Staged  bool   `db:"staged"`
	Rule    string `db:"rule"`
	Last    string `db:"last_activity"` // JSON
}

// addSleeps sets Sleep of VMs in the two states that can have it: asleep, or about
// to wake.
func addSleeps(ctx context.Context, q querier, vms []vm.VM) error {
	place := map[string]int{}
	var ids []string
	for i, v := range vms {
		if mayHaveSleep(v.State) {
			place[v.ID] = i
			ids = append(ids, v.ID)
		}
	}
	for chunk := range slices.Chunk(ids, idsPerQuery) {
		query, args, err := sqlx.In("SELECT vm_id, slept_at, durable, bytes, staged, rule, last_activity FROM vm_sleeps WHERE vm_id IN (?)", chunk)
		if err != nil {
			return fmt.Errorf("cannot read the saved memory of VMs: %w", err)
		}
		var rows []sleepRow
		if err := selectAll(ctx, q, &rows, query, args...); err != nil {
			return fmt.Errorf("cannot read the saved memory of VMs: %w", err)
		}
		for _, r := range rows {
			slept := vm.Sleep{At: fromMicros(r.SleptAt), Durable: r.Durable, Bytes: r.Bytes, Staged: r.Staged, Rule: vm.Rule(r.Rule)}
			if err := fromJSON(r.Last, &slept.Last); err != nil {
				return fmt.Errorf("cannot read the last activity of VM %s: %w", r.VMID, err)
			}
			vms[place[r.VMID]].Sleep = &slept
		}
	}
	return nil
}

// mayHaveSleep reports whether a VM in this state can have saved memory.
func mayHaveSleep(state vm.State) bool { return state == vm.Snapshotted || state == vm.Starting }

// setSleep stores Sleep of the VM, or removes it if there is none.
func (t *tx) setSleep(ctx context.Context, v vm.VM) error {
	if _, err := t.exec(ctx, "DELETE FROM vm_sleeps WHERE vm_id = ?", v.ID); err != nil {
		return fmt.Errorf("cannot store the saved memory of a VM: %w", err)
	}
	if v.Sleep == nil {
		return nil
	}
	last, err := toJSON(v.Sleep.Last)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, "INSERT INTO vm_sleeps (vm_id, slept_at, durable, bytes, staged, rule, last_activity) VALUES (?, ?, ?, ?, ?, ?, ?)",
		v.ID, micros(v.Sleep.At), v.Sleep.Durable, v.Sleep.Bytes, v.Sleep.Staged, string(v.Sleep.Rule), printable(last))
	if err != nil {
		return fmt.Errorf("cannot store the saved memory of a VM: %w", err)
	}
	return nil
}

// sameSleep reports whether Sleep is unchanged.
func sameSleep(a, b *vm.Sleep) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.At.Equal(b.At) && a.Durable == b.Durable && a.Bytes == b.Bytes && a.Staged == b.Staged && a.Rule == b.Rule && a.Last.At.Equal(b.Last.At)
}
