package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

// Columns of vms whose values are left out of use for some time after their release.
const (
	columnAddress = "guest_ip"
	columnSSHPort = "ssh_port"
)

// released is a value that a VM has given up a short time ago.
type released struct {
	Number     int64  `db:"number"`
	OwnerID    string `db:"owner_id"` // of the former VM
	ReleasedAt int64  `db:"released_at"`
}

// release notes what the VM's lease gives up.
func (t *tx) release(ctx context.Context, v vm.VM) error {
	if v.Lease.Address.IsValid() {
		if err := t.releaseNumber(ctx, columnAddress, addressNumber(v.Lease.Address), v.OwnerID); err != nil {
			return err
		}
	}
	if v.Lease.SSHPort == 0 {
		return nil
	}
	return t.releaseNumber(ctx, columnSSHPort, int64(v.Lease.SSHPort), v.OwnerID)
}

func (t *tx) releaseNumber(ctx context.Context, column string, number int64, owner string) error {
	_, err := t.exec(ctx, `INSERT INTO released (host_id, kind, number, owner_id, released_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (host_id, kind, number) DO UPDATE SET owner_id = excluded.owner_id, released_at = excluded.released_at`,
		t.host, column, number, owner, micros(time.Now()))
	if err != nil {
		return fmt.Errorf("cannot note a released %s: %w", column, err)
	}
	return nil
}

// forgetReleased deletes what may be used again, and what the clock, set back since,
// would keep for too long.
func (t *tx) forgetReleased(ctx context.Context, pools network.Pools) error {
	now := time.Now()
	_, err := t.exec(ctx, "DELETE FROM released WHERE host_id = ? AND (released_at <= ? OR released_at > ?)",
		t.host, micros(now.Add(-pools.CoolDown)), micros(now))
	if err != nil {
		return fmt.Errorf("cannot delete old releases: %w", err)
	}
	return nil
}

// cooling lists the values of a column that are to be left out of use, the oldest
// release first. Precondition: forgetReleased.
func (t *tx) cooling(ctx context.Context, column string, low, high int64) ([]int64, error) {
	var found []int64
	err := selectAll(ctx, t, &found, `SELECT number FROM released
		WHERE host_id = ? AND kind = ? AND number >= ? AND number <= ? ORDER BY released_at, number`, t.host, column, low, high)
	if err != nil {
		return nil, fmt.Errorf("cannot list released values of %s: %w", column, err)
	}
	return found, nil
}

// checkReleased refuses an address that was another owner's until just now. The former
// owner may have it back.
func (t *tx) checkReleased(ctx context.Context, address int64, owner string, pools network.Pools) error {
	var last released
	found, err := t.get(ctx, &last, "SELECT number, owner_id, released_at FROM released WHERE host_id = ? AND kind = ? AND number = ?",
		t.host, columnAddress, address)
	if err != nil {
		return fmt.Errorf("cannot look up a released address: %w", err)
	}
	if !found || last.OwnerID == owner {
		return nil
	}
	free := fromMicros(last.ReleasedAt).Add(pools.CoolDown)
	return errs.New(errs.Conflict, "guest_ip_taken", "guest_ip: %s was another account's until just now, and is out of use until %s",
		addressOf(address), free.Format(time.RFC3339)).
		WithField("guest_ip").WithHint("give another free address of %s, or leave guest_ip out", pools.Network.Prefix)
}

// choose returns the number from low to high that accept agrees to: the smallest that
// no VM has and that is not cooling, or, if there is none, the one that was released
// first.
func (t *tx) choose(ctx context.Context, column string, low, high int64, accept func(int64) (bool, error)) (n int64, found bool, err error) {
	coolest, err := t.cooling(ctx, column, low, high)
	if err != nil {
		return 0, false, err
	}
	cooling := make(map[int64]bool, len(coolest))
	for _, n := range coolest {
		cooling[n] = true
	}
	for ; low <= high; low++ {
		if cooling[low] {
			continue
		}
		if n, found, err = t.firstFree(ctx, column, low, high); err != nil || !found {
			break
		}
		if low = n; cooling[n] {
			continue
		}
		if ok, err := accept(n); ok || err != nil {
			return n, ok, err
		}
	}
	if err != nil {
		return 0, false, err
	}
	for _, n := range coolest {
		taken, err := t.taken(ctx, column, n)
		if err != nil {
			return 0, false, err
		}
		if taken {
			continue
		}
		if ok, err := accept(n); ok || err != nil {
			return n, ok, err
		}
	}
	return 0, false, nil
}
