package store

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestReviseVM(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_a")
		anImage(t, s)
		made, err := s.CreateVM(ctx, newVM("vm_a"), network.Request{}, pools(t), vm.Capacity{})
		noError(t, err)
		_, err = s.CreateVM(ctx, newVM("vm_b"), network.Request{}, pools(t), vm.Capacity{})
		noError(t, err)

		got, err := s.ReviseVM(ctx, access.Owner("acc_a"), "vm_a", pools(t), func(v *vm.VM) error {
			v.Name, v.Description, v.Labels, v.VCPUs, v.MemMiB = "new", "d", map[string]string{"x": "y"}, 3, 1024
			return nil
		})
		noError(t, err)
		want := made
		want.Name, want.Description, want.Labels, want.VCPUs, want.MemMiB = "new", "d", map[string]string{"x": "y"}, 3, 1024
		want.UpdatedAt, want.Revision = got.UpdatedAt, got.Revision
		equal(t, got, want)
		if !got.UpdatedAt.After(made.UpdatedAt) || got.Revision <= made.Revision {
			t.Errorf("updated at %v, revision %d", got.UpdatedAt, got.Revision)
		}
		page, _, err := s.Events(ctx, event.Filter{Scope: access.Owner("acc_a"), Types: []event.Pattern{"vm.updated"}, Limit: 10})
		noError(t, err)
		if len(page) != 1 || string(page[0].Data) != `{"fields":["name","description","labels","vcpu_count","mem_mib"]}` {
			t.Errorf("events %s", fmt.Sprint(page))
		}
		for filter, ids := range map[string]int{"x": 1, "team": 1} { // vm_b still has its team
			found, _, err := s.VMs(ctx, access.Owner("acc_a"), vm.Filter{Labels: map[string]string{filter: map[string]string{"x": "y", "team": "a"}[filter]}})
			noError(t, err)
			equal(t, len(found), ids)
		}

		_, err = s.ReviseVM(ctx, access.Owner("acc_a"), "vm_b", pools(t), func(v *vm.VM) error { v.Name = "new"; return nil })
		hasCode(t, err, errs.Conflict, "name_taken")
		for _, id := range []string{"vm_none", "\x00"} {
			_, err = s.ReviseVM(ctx, access.Owner("acc_a"), id, pools(t), func(*vm.VM) error { return nil })
			hasCode(t, err, errs.NotFound, "vm_not_found")
		}
		_, err = s.ReviseVM(ctx, access.Owner("acc_b"), "vm_a", pools(t), func(*vm.VM) error { return nil })
		hasCode(t, err, errs.NotFound, "vm_not_found")

		// Concurrent changes are both kept.
		var all errgroup.Group
		for range 8 {
			all.Go(func() error {
				_, err := s.ReviseVM(ctx, access.Owner("acc_a"), "vm_a", pools(t), func(v *vm.VM) error { v.VCPUs++; return nil })
				return err
			})
		}
		noError(t, all.Wait())
		last, err := s.VM(ctx, access.Owner("acc_a"), "vm_a")
		noError(t, err)
		equal(t, last.VCPUs, 3+8)
	})
}
