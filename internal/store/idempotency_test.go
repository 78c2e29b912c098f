package store

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/webhook"
)

func keyed(t *testing.T, owner, key, hash string) context.Context {
	return idempotency.With(t.Context(), idempotency.Request{Owner: owner, Key: key, Hash: hash})
}

func sameIDs(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("the key has %v, want %v", got, want)
	}
}

// TestEachCreateStoresItsKey stores each kind of object under a key, and again: the
// second is refused because of the key, not because its name is taken.
func TestEachCreateStoresItsKey(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		hook := webhook.Webhook{ID: "whk_a", OwnerID: "acc_a", URL: "http://a", CreatedAt: now(), UpdatedAt: now()}
		noError(t, s.InsertWebhook(t.Context(), hook, 9))
		hook.ID = "whk_b"
		for id, create := range map[string]func(context.Context) error{
			"vm_a": func(ctx context.Context) error {
				_, err := s.CreateVM(ctx, newVM("vm_a"), network.Request{}, pools(t), vm.Capacity{})
				return err
			},
			"snap_a": func(ctx context.Context) error { return insertSnapshotIn(ctx, s, newSnapshot("snap_a")) },
			"key_a": func(ctx context.Context) error {
				return s.InsertKey(ctx, access.Key{ID: "key_a", OwnerID: "acc_a", Name: "a", Hash: []byte("a"), CreatedAt: now()})
			},
			"img_b": func(ctx context.Context) error {
				return s.InsertImage(ctx, image.Image{ID: "img_b", OwnerID: "acc_a", CreatedAt: now()})
			},
			"tpl_a": func(ctx context.Context) error {
				return s.InsertTemplate(ctx, template.Template{ID: "tpl_a", OwnerID: "acc_a", Name: "a", CreatedAt: now(), UpdatedAt: now()})
			},
			"whk_b":  func(ctx context.Context) error { return s.InsertWebhook(ctx, hook, 9) },
			"dlv_a":  func(ctx context.Context) error { return s.InsertDelivery(ctx, newDelivery("whk_a", "dlv_a", 1), 9) },
			"exec_a": func(ctx context.Context) error { return s.Remember(ctx, "exec_a") },
		} {
			ctx := keyed(t, "acc_a", id, "h")
			noError(t, create(ctx))
			hasCode(t, create(ctx), errs.Conflict, idempotency.CodeUsed)
			made, err := s.Made(ctx, idempotency.Of(ctx))
			noError(t, err)
			sameIDs(t, made, id)
		}
	})
}

func TestIdempotencyKeys(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		account(t, s, "acc_b")
		create := func(ctx context.Context, vms ...vm.VM) error {
			_, err := s.CreateVMs(ctx, vms, pools(t), vm.Capacity{})
			return err
		}
		made := func(owner, hash string) []string {
			t.Helper()
			ids, err := s.Made(t.Context(), idempotency.Request{Owner: owner, Key: "k", Hash: hash})
			noError(t, err)
			return ids
		}
		ran, failed := newVM("vm_a"), newVM("vm_b")
		ran.Name, failed.Name = "", ""
		ctx := keyed(t, "acc_a", "k", "h")
		noError(t, create(ctx, ran, failed))
		sameIDs(t, made("acc_a", "h"), "vm_a", "vm_b")
		sameIDs(t, made("acc_b", "h")) // another owner's key
		_, err := s.Made(ctx, idempotency.Request{Owner: "acc_a", Key: "k", Hash: "other"})
		hasCode(t, err, errs.Conflict, "idempotency_key_reused")

		// One that never ran leaves its key free; one that ran does not.
		_, err = s.UpdateVM(ctx, "vm_a", func(v *vm.VM) { v.StartedAt, v.Unconfirmed = new(now()), "" })
		noError(t, err)
		noError(t, s.DeleteVM(ctx, "vm_a"))
		noError(t, s.DeleteVM(ctx, "vm_b"))
		sameIDs(t, made("acc_a", "h"), "vm_a")
		again := newVM("vm_c")
		hasCode(t, create(ctx, again), errs.Conflict, idempotency.CodeUsed)

		// So does a snapshot that was abandoned, and not one that was deleted.
		for id, durable := range map[string]bool{"snap_a": false, "snap_b": true} {
			snap := newSnapshot(id)
			snap.Name = ""
			ctx := keyed(t, "acc_a", id, "h")
			noError(t, insertSnapshotIn(ctx, s, snap))
			if durable {
				noError(t, s.SealSnapshot(ctx, snap))
			}
			noError(t, s.DeleteSnapshot(ctx, id))
			ids, err := s.Made(ctx, idempotency.Of(ctx))
			noError(t, err)
			if (ids != nil) != durable {
				t.Errorf("durable %v: the key has %v", durable, ids)
			}
		}

		// hatchd's own objects take no key of the request that they are made for.
		own := newVM("vm_own")
		own.OwnerID, own.Name = "acc_b", ""
		noError(t, create(keyed(t, "acc_a", "own", "h"), own))

		// A key is forgotten after its lifetime, and its row at the next use of any.
		old := micros(time.Now().Add(-idempotency.Lifetime - time.Minute))
		_, err = s.writes.Exec("UPDATE idempotent_requests SET created_at = " + fmt.Sprint(old))
		noError(t, err)
		sameIDs(t, made("acc_a", "h"))
		noError(t, create(ctx, again))
		var rows int
		noError(t, s.reads.Get(&rows, "SELECT COUNT(*) FROM idempotent_requests"))
		if rows != 1 {
			t.Errorf("%d keys are left", rows)
		}
	})
}

// A failed create must not use up its idempotency key.
func TestFailedCreateKeepsNoKey(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		ctx := keyed(t, "acc_a", "k", "h")
		_, err := s.CreateVM(ctx, newVM("vm_a"), network.Request{}, pools(t), vm.Capacity{MemMiB: 1})
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		_, err = s.CreateVM(ctx, newVM("vm_a"), network.Request{}, pools(t), vm.Capacity{})
		noError(t, err)
	})
}

func TestConcurrentCreatesWithOneKey(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		var g errgroup.Group
		var created atomic.Int32
		for i := range 10 {
			g.Go(func() error {
				v := newVM(fmt.Sprintf("vm_%d", i))
				_, err := s.CreateVM(keyed(t, "acc_a", "k", "h"), v, network.Request{}, pools(t), vm.Capacity{})
				if errs.HasCode(err, idempotency.CodeUsed) {
					return nil
				}
				created.Add(1)
				return err
			})
		}
		noError(t, g.Wait())
		if n := created.Load(); n != 1 {
			t.Errorf("%d VMs were made", n)
		}
	})
}
