package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMByKey implements [vm.Store].
func (s *vmStore) VMByKey(ctx context.Context, owner string, idem vm.Idempotency) (v vm.VM, found bool, err error) {
	err = s.read(ctx, func(q querier) error {
		v, found, err = vmByKey(ctx, q, owner, idem)
		return err
	})
	return v, found, err
}

func vmByKey(ctx context.Context, q querier, owner string, idem vm.Idempotency) (v vm.VM, found bool, err error) {
	if idem.Key == "" {
		return vm.VM{}, false, nil
	}
	var used struct {
		Hash string `db:"hash"`
		VMID string `db:"vm_id"`
	}
	found, err = get(ctx, q, &used, "SELECT hash, vm_id FROM idempotency_keys WHERE owner_id = ? AND key = ? AND created_at >= ?",
		owner, idem.Key, micros(time.Now().Add(-idem.Lifetime)))
	switch {
	case err != nil:
		return vm.VM{}, false, fmt.Errorf("cannot look up an idempotency key: %w", err)
	case !found:
		return vm.VM{}, false, nil
	case used.Hash != idem.Hash:
		return vm.VM{}, false, errs.New(errs.Conflict, "idempotency_key_reused", "Idempotency-Key: this key was already used with another request").
			WithField("Idempotency-Key").WithHint("send the same body again, or use a new key")
	}
	v, err = oneVM(ctx, q, access.Owner(owner), used.VMID)
	if errs.Is(err, errs.NotFound) { // deleted meanwhile, and its key with it
		return vm.VM{}, false, nil
	}
	return v, err == nil, err
}

// remember stores the key for v, until v is deleted, and deletes keys that are older
// than their lifetime.
func (t *tx) remember(ctx context.Context, v vm.VM, idem vm.Idempotency) error {
	if idem.Key == "" {
		return nil
	}
	if _, err := t.exec(ctx, "DELETE FROM idempotency_keys WHERE created_at < ?", micros(time.Now().Add(-idem.Lifetime))); err != nil {
		return fmt.Errorf("cannot delete old idempotency keys: %w", err)
	}
	_, err := t.exec(ctx, "INSERT INTO idempotency_keys (owner_id, key, hash, vm_id, created_at) VALUES (?, ?, ?, ?, ?)",
		v.OwnerID, idem.Key, idem.Hash, v.ID, micros(time.Now()))
	if err != nil {
		return fmt.Errorf("cannot store the idempotency key: %w", err)
	}
	return nil
}
