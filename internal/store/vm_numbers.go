package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

// The kinds of numbers that a lease has, each of which one VM of a host can have. They
// are the names of columns of vms. Published ports are of the kind of SSH ports: a port
// of the host leads to one port of one VM.
const (
	columnAddress = "guest_ip"
	columnSSHPort = "ssh_port"
	columnTap     = "tap_number"
	columnUID     = "uid"
)

// numberKinds are all kinds, and whether a number stays out of use for some time after
// its release.
var numberKinds = []struct {
	column string
	cools  bool
	of     func(*vmRow) []int64
}{
	{columnAddress, true, func(r *vmRow) []int64 { return valid(r.GuestIP) }},
	{columnSSHPort, true, func(r *vmRow) []int64 { return append(valid(r.SSHPort), r.publishedPorts()...) }},
	{columnTap, false, func(r *vmRow) []int64 { return valid(r.TapNumber) }},
	{columnUID, false, func(r *vmRow) []int64 { return valid(r.UID) }},
}

// valid returns a number as a list, which is empty for NULL.
func valid(n sql.Null[int64]) []int64 {
	if !n.Valid {
		return nil
	}
	return []int64{n.V}
}

// moveNumbers stores that a VM has the numbers of its row after, and no longer those of
// its row before. Precondition: this transaction has locked the reservations, and the
// row, if it is not new.
func (t *tx) moveNumbers(ctx context.Context, before, after vmRow) error {
	if cmp.Or(before.HostID, after.HostID) != t.host { // a VM of an earlier host has none here
		return nil
	}
	for _, kind := range numberKinds {
		had, has := kind.of(&before), kind.of(&after)
		var err error
		for _, n := range had {
			switch {
			case err != nil || slices.Contains(has, n):
			case kind.cools:
				_, err = t.exec(ctx, "UPDATE numbers SET released_at = ? WHERE host_id = ? AND kind = ? AND number = ?", micros(time.Now()), t.host, kind.column, n)
			default:
				err = t.freeNumber(ctx, kind.column, n)
			}
		}
		for _, n := range has {
			if err == nil && !slices.Contains(had, n) {
				err = t.useNumber(ctx, kind.column, n, after.OwnerID)
			}
		}
		if err != nil {
			return fmt.Errorf("cannot store which %s is in use: %w", kind.column, err)
		}
	}
	return nil
}

func (t *tx) useNumber(ctx context.Context, column string, number int64, owner string) error {
	after, err := t.inUse(ctx, column, number+1)
	if err != nil {
		return err
	}
	stored, err := t.exec(ctx, `INSERT INTO numbers (host_id, kind, number, next_free, owner_id) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (host_id, kind, number) DO UPDATE SET owner_id = excluded.owner_id, released_at = NULL WHERE numbers.released_at IS NOT NULL`,
		t.host, column, number, sql.NullInt64{Int64: number + 1, Valid: !after}, owner)
	if err == nil && stored == 0 {
		err = fmt.Errorf("%d is another VM's", number)
	}
	if err != nil {
		return err
	}
	return t.setNextFree(ctx, column, number-1, sql.NullInt64{})
}

func (t *tx) freeNumber(ctx context.Context, column string, number int64) error {
	if _, err := t.exec(ctx, "DELETE FROM numbers WHERE host_id = ? AND kind = ? AND number = ?", t.host, column, number); err != nil {
		return err
	}
	return t.setNextFree(ctx, column, number-1, sql.NullInt64{Int64: number, Valid: true})
}

// setNextFree stores next_free of a number, if it is in use.
func (t *tx) setNextFree(ctx context.Context, column string, number int64, next sql.NullInt64) error {
	_, err := t.exec(ctx, "UPDATE numbers SET next_free = ? WHERE host_id = ? AND kind = ? AND number = ?", next, t.host, column, number)
	return err
}

func (t *tx) inUse(ctx context.Context, column string, number int64) (bool, error) {
	var one int
	return t.get(ctx, &one, "SELECT 1 FROM numbers WHERE host_id = ? AND kind = ? AND number = ?", t.host, column, number)
}

// freeReleased frees the numbers that may be used again, and those that the clock, set
// back since, would keep for too long.
func (t *tx) freeReleased(ctx context.Context, pools network.Pools) error {
	var found []struct {
		Kind   string `db:"kind"`
		Number int64  `db:"number"`
	}
	now := time.Now()
	err := selectAll(ctx, t, &found, "SELECT kind, number FROM numbers WHERE host_id = ? AND released_at IS NOT NULL AND (released_at <= ? OR released_at > ?)",
		t.host, micros(now.Add(-pools.CoolDown)), micros(now))
	for _, n := range found {
		if err == nil {
			err = t.freeNumber(ctx, n.Kind, n.Number)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot free released numbers: %w", err)
	}
	return nil
}

// firstFree returns the smallest number from low to high that is not in use.
func (t *tx) firstFree(ctx context.Context, column string, low, high int64) (n int64, found bool, err error) {
	if low > high {
		return 0, false, nil
	}
	used, err := t.inUse(ctx, column, low)
	if err == nil && !used {
		return low, true, nil
	}
	if err == nil {
		found, err = t.get(ctx, &n, "SELECT next_free FROM numbers WHERE host_id = ? AND kind = ? AND next_free > ? AND next_free <= ? ORDER BY next_free LIMIT 1",
			t.host, column, low, high)
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot find a free %s: %w", column, err)
	}
	return n, found, nil
}

// choose returns the number from low to high that accept agrees to: the smallest that
// is not in use, or, if there is none, the one that was released first.
func (t *tx) choose(ctx context.Context, column string, low, high int64, accept func(int64) (bool, error)) (n int64, found bool, err error) {
	for first := low; ; first = n + 1 {
		if n, found, err = t.firstFree(ctx, column, first, high); err != nil {
			return 0, false, err
		}
		if !found {
			break
		}
		if ok, err := accept(n); ok || err != nil {
			return n, ok, err
		}
	}
	var released []int64
	err = selectAll(ctx, t, &released, `SELECT number FROM numbers
		WHERE host_id = ? AND kind = ? AND released_at IS NOT NULL AND number >= ? AND number <= ? ORDER BY released_at, number`, t.host, column, low, high)
	if err != nil {
		return 0, false, fmt.Errorf("cannot list released values of %s: %w", column, err)
	}
	for _, n := range released {
		if ok, err := accept(n); ok || err != nil {
			return n, ok, err
		}
	}
	return 0, false, nil
}

// checkReleased refuses an address that was another owner's until just now. The former
// owner may have it back.
func (t *tx) checkReleased(ctx context.Context, address int64, owner string, pools network.Pools) error {
	var last struct {
		OwnerID    string `db:"owner_id"`
		ReleasedAt int64  `db:"released_at"`
	}
	found, err := t.get(ctx, &last, "SELECT owner_id, released_at FROM numbers WHERE host_id = ? AND kind = ? AND number = ? AND released_at IS NOT NULL",
		t.host, columnAddress, address)
	if err != nil {
		return fmt.Errorf("cannot look up a released address: %w", err)
	}
	if !found || last.OwnerID == owner {
		return nil
	}
	free := fromMicros(last.ReleasedAt).Add(pools.CoolDown)
	return errs.New(errs.Conflict, "guest_ip_taken", "guest_ip: %s was another user's until just now, and is out of use until %s",
		addressOf(address), free.Format(time.RFC3339)).
		WithField("guest_ip").WithHint("give another free address of %s, or leave guest_ip out", pools.Network.Prefix)
}

// countNumbers stores the numbers of all VMs of the host if some are missing: after a
// migration, or because the host has got another id.
func (t *tx) countNumbers(ctx context.Context) error {
	var used, stored int
	_, err := t.get(ctx, &used, "SELECT COUNT(guest_ip) + COUNT(ssh_port) + COUNT(tap_number) + COUNT(uid) FROM vms WHERE host_id = ?", t.host)
	if err == nil {
		_, err = t.get(ctx, &stored, "SELECT COUNT(*) FROM numbers WHERE host_id = ? AND released_at IS NULL", t.host)
	}
	var ports map[int64]string
	if err == nil {
		ports, err = t.countPorts(ctx)
	}
	if err != nil || used+len(ports) == stored {
		return err
	}
	if _, err := t.exec(ctx, "DELETE FROM numbers WHERE host_id = ? AND released_at IS NULL", t.host); err != nil {
		return err
	}
	for _, kind := range numberKinds {
		_, err := t.exec(ctx, `INSERT INTO numbers (host_id, kind, number, owner_id)
			SELECT host_id, ?, `+kind.column+`, owner_id FROM vms WHERE host_id = ? AND `+kind.column+` IS NOT NULL
			ON CONFLICT (host_id, kind, number) DO UPDATE SET owner_id = excluded.owner_id, released_at = NULL`, kind.column, t.host)
		if err != nil {
			return err
		}
	}
	for port, owner := range ports {
		_, err := t.exec(ctx, `INSERT INTO numbers (host_id, kind, number, owner_id) VALUES (?, ?, ?, ?)
			ON CONFLICT (host_id, kind, number) DO UPDATE SET owner_id = excluded.owner_id, released_at = NULL`, t.host, columnSSHPort, port, owner)
		if err != nil {
			return err
		}
	}
	_, err = t.exec(ctx, `UPDATE numbers SET next_free = CASE WHEN EXISTS (SELECT 1 FROM numbers n
		WHERE n.host_id = numbers.host_id AND n.kind = numbers.kind AND n.number = numbers.number + 1) THEN NULL ELSE number + 1 END WHERE host_id = ?`, t.host)
	return err
}
