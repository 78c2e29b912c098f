package store

import (
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// A scope that names no user must not turn into one that sees them all.
func TestScopeWithoutUserSeesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		noError(t, s.InsertKey(ctx, newKey("key_a", "acc_a")))
		created := createVM(t, s, newVM("vm_a")) // and its image
		for _, scope := range []access.Scope{{}, access.Owner("")} {
			_, err := s.VM(ctx, scope, created.ID)
			hasCode(t, err, errs.NotFound, "vm_not_found")
			_, err = s.Image(ctx, scope, "img_a")
			hasCode(t, err, errs.NotFound, "image_not_found")
			hasCode(t, s.DeleteKey(ctx, scope, "key_a", ""), errs.NotFound, "key_not_found")
			hasCode(t, s.DeleteImage(ctx, scope, "img_a"), errs.NotFound, "image_not_found")
			page, _, err := s.VMs(ctx, scope, vm.Filter{})
			noError(t, err)
			equal(t, len(page), 0)
			equal(t, len(allEvents(t, s, event.Filter{Scope: scope})), 0)
			keys, err := s.Keys(ctx, scope)
			noError(t, err)
			equal(t, len(keys), 0)
		}
		page, _, err := s.VMs(ctx, access.Everyone, vm.Filter{})
		noError(t, err)
		equal(t, len(page), 1)
	})
}
