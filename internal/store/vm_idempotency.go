package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMByKey implements [vm.Store].
func (s *Store) VMByKey(ctx context.Context, owner string, idem vm.Idempotency, reach time.Duration) (v vm.VM, found bool, err error) {
	return vmByKey(ctx, s.reads, owner, idem, reach)
}

func vmByKey(ctx context.Context, q querier, owner string, idem vm.Idempotency, reach time.Duration) (v vm.VM, found bool, err error) {
	if idem.Key == "" {
		return vm.VM{}, false, nil
	}
	var used struct {
		Hash string `db:"hash"`
		VMID string `db:"vm_id"`
	}
	found, err = get(ctx, q, &used, "SELECT hash, vm_id FROM idempotency_keys WHERE owner_id = ? AND key = ? AND created_at >= ?",
		owner, idem.Key, micros(time.Now().Add(-reach)))
	switch {
	case err != nil:
		return vm.VM{}, false, fmt.Errorf("cannot look up an idempotency key: %w", err)
	case !found:
		return vm.VM{}, false, nil
	case used.Hash != idem.Hash:
		return vm.VM{}, false, errs.New(errs.Conflict, "idempotency_key_reused", "Idempotency-Key: this key was used before with another request").
			WithField("Idempotency-Key").WithHint("send the same body again, or use a new key")
	}
	v, err = oneVM(ctx, q, owner, used.VMID)
	if errs.Is(err, errs.NotFound) { // deleted since, and its key with it
		return vm.VM{}, false, nil
	}
	return v, err == nil, err
}

// remember ties the key to v, for as long as v is there, and forgets keys that
// are older than reach.
func (t *tx) remember(ctx context.Context, v vm.VM, idem vm.Idempotency, reach time.Duration) error {
	if idem.Key == "" {
		return nil
	}
	if _, err := t.exec(ctx, "DELETE FROM idempotency_keys WHERE created_at < ?", micros(time.Now().Add(-reach))); err != nil {
		return fmt.Errorf("cannot forget old idempotency keys: %w", err)
	}
	_, err := t.exec(ctx, "INSERT INTO idempotency_keys (owner_id, key, hash, vm_id, created_at) VALUES (?, ?, ?, ?, ?)",
		v.OwnerID, idem.Key, idem.Hash, v.ID, micros(time.Now()))
	if err != nil {
		return fmt.Errorf("cannot store the idempotency key: %w", err)
	}
	return nil
}
