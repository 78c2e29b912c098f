package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/webhook"
)

// takers take some of each resource, under a number of their own.
func takers(t *testing.T, s *Store) map[quota.Resource]func(ctx context.Context, n int) error {
	p := poolsOf(t, "10.9.0.1/16", 20_000)
	create := func(ctx context.Context, n int) error {
		_, err := s.CreateVM(ctx, newVM(fmt.Sprintf("vm_n%d", n)), network.Request{}, p, vm.Capacity{})
		return err
	}
	take := func(ctx context.Context, n int) error {
		_, err := s.InsertSnapshot(ctx, snapshot.Snapshot{ID: fmt.Sprintf("snap_n%d", n), OwnerID: "acc_a", Bytes: 5<<20 - 1, VM: snapshot.Origin{Spec: machine.Spec{ImageID: "img_a"}}, CreatedAt: now()})
		return err
	}
	return map[quota.Resource]func(context.Context, int) error{
		quota.VMs: create, quota.VCPUs: create, quota.Memory: create, quota.Disk: create,
		quota.Snapshots: take, quota.SnapshotMiB: take,
		quota.ImageMiB: func(ctx context.Context, n int) error {
			i := anyImage()
			i.ID, i.Name, i.Rootfs.Size = fmt.Sprintf("img_n%d", n), "", 4<<20
			return s.InsertImage(ctx, i)
		},
		quota.Routes: func(ctx context.Context, n int) error {
			_, err := s.InsertRoute(ctx, access.Owner("acc_a"), fullRoute("vm_first", fmt.Sprintf("r%d", n)), 1000)
			return err
		},
		quota.Webhooks: func(ctx context.Context, n int) error {
			return s.InsertWebhook(ctx, webhook.Webhook{ID: fmt.Sprintf("wh_n%d", n), OwnerID: "acc_a", CreatedAt: now(), UpdatedAt: now()}, 1000)
		},
	}
}

// rooms is how much each taker takes of its resource.
var rooms = map[quota.Resource]int64{quota.VMs: 1, quota.VCPUs: 2, quota.Memory: 512, quota.Disk: 1024, quota.Snapshots: 1, quota.SnapshotMiB: 5, quota.ImageMiB: 5, quota.Routes: 1, quota.Webhooks: 1}

func newLimited(t *testing.T, s *Store) quota.Usage {
	ctx := t.Context()
	noError(t, s.UpsertImage(ctx, anyImage()))
	_, err := s.CreateVM(ctx, newVM("vm_first"), network.Request{}, poolsOf(t, "10.9.0.1/16", 20_000), vm.Capacity{})
	noError(t, err)
	u, err := s.Usage(ctx, "acc_a")
	noError(t, err)
	return u
}

func limitTo(t *testing.T, s *Store, own quota.Own) {
	t.Helper()
	_, err := s.SetQuota(t.Context(), "acc_a", func(quota.Usage) (quota.Own, error) { return own, nil })
	noError(t, err)
}

// However many requests come at a time, no resource is exceeded.
func TestNoQuotaIsExceededInParallel(t *testing.T) {
	const requests, fit = 100, 7
	for _, r := range quota.Resources {
		t.Run(string(r), func(t *testing.T) {
			onEach(t, func(t *testing.T, s *Store) {
				before := newLimited(t, s).Used[r]
				allowed := before + fit*rooms[r]
				limitTo(t, s, quota.Own{r: allowed})
				take := takers(t, s)[r]
				var taken atomic.Int64
				var all errgroup.Group
				for n := range requests {
					all.Go(func() error {
						err := take(t.Context(), n)
						if err == nil {
							taken.Add(1)
						}
						if errs.HasCode(err, quota.Code) || err == nil {
							return nil
						}
						return err
					})
				}
				noError(t, all.Wait())
				u, err := s.Usage(t.Context(), "acc_a")
				noError(t, err)
				if taken.Load() != fit || u.Used[r] != allowed {
					t.Errorf("%d of %d fit, and %d of %d are used; %d would be right", taken.Load(), requests, u.Used[r], allowed, fit)
				}
				if err := take(t.Context(), requests); !errs.Is(err, errs.Forbidden) || !errs.HasCode(err, quota.Code) {
					t.Errorf("one more: %v", err)
				}
				limitTo(t, s, quota.Own{r: quota.Unlimited})
				noError(t, take(t.Context(), requests+1))
			})
		})
	}
}

// A VM that stops or sleeps gives up CPUs and memory, and needs them again to start.
func TestAStartIsCountedAnew(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, p := t.Context(), poolsOf(t, "10.9.0.1/16", 20_000)
		newLimited(t, s)
		s.LimitUsers(quota.Limits{quota.VCPUs: 3})
		create := func() error {
			_, err := s.CreateVM(ctx, newVM("vm_second"), network.Request{}, p, vm.Capacity{})
			return err
		}
		err := create()
		hasCode(t, err, errs.Forbidden, quota.Code)
		if !errors.Is(err, vm.ErrOwnersVMsInTheWay) {
			t.Errorf("it would fit alone: %v", err)
		}
		_, err = s.UpdateVM(ctx, "vm_first", func(v *vm.VM) { v.State, v.Machine = vm.Stopped, nil })
		noError(t, err)
		noError(t, create())
		_, err = s.LeaseVM(ctx, "vm_first", p, vm.Capacity{})
		hasCode(t, err, errs.Forbidden, quota.Code)
		hasCode(t, s.CheckMemory(ctx, vm.VM{ID: "vm_first"}, vm.Capacity{}), errs.Forbidden, quota.Code)
		noError(t, s.DeleteVM(ctx, "vm_second"))
		_, err = s.LeaseVM(ctx, "vm_first", p, vm.Capacity{})
		noError(t, err)

		limitTo(t, s, quota.Own{quota.VCPUs: 1})
		if err := create(); errors.Is(err, vm.ErrOwnersVMsInTheWay) {
			t.Errorf("it is too large even alone: %v", err)
		}
		u, err := s.Usage(ctx, "acc_a")
		noError(t, err)
		equal(t, u.Used[quota.VCPUs], 2)
	})
}

// A snapshot counts as estimated until it is sealed; one that is larger is refused then.
func TestASnapshotThatBecomesLargerIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		newLimited(t, s)
		limitTo(t, s, quota.Own{quota.SnapshotMiB: 6})
		noError(t, takers(t, s)[quota.SnapshotMiB](ctx, 1))
		snap := snapshot.Snapshot{ID: "snap_n1", OwnerID: "acc_a", Bytes: 7 << 20}
		hasCode(t, s.SealSnapshot(ctx, snap), errs.Forbidden, quota.Code)
		snap.Bytes = 6 << 20
		noError(t, s.SealSnapshot(ctx, snap))
	})
}

// hatchd itself has no quota, and a user that does not exist owns nothing.
func TestUsageOfOthers(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		s.LimitUsers(quota.Limits{quota.Webhooks: 0})
		account(t, s, access.SystemID)
		noError(t, s.InsertWebhook(t.Context(), webhook.Webhook{ID: "wh_s", OwnerID: access.SystemID, CreatedAt: now(), UpdatedAt: now()}, 9))
		hasCode(t, s.InsertWebhook(t.Context(), webhook.Webhook{ID: "wh_a", OwnerID: "acc_a", CreatedAt: now(), UpdatedAt: now()}, 9), errs.Forbidden, quota.Code)
		for _, id := range []string{"acc_none", "\x00"} {
			u, err := s.Usage(t.Context(), id)
			noError(t, err)
			for _, n := range u.Used {
				equal(t, n, 0)
			}
		}
	})
}
