package daemon

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/vm"
)

// guests finds the agents of VMs for the nouns that work inside guests.
type guests struct {
	vms *vm.Service
}

var (
	_ process.Guests = guests{}
	_ file.Guests    = guests{}
)

// ProcessGuest implements process.Guests.
func (g guests) ProcessGuest(ctx context.Context, owner, vmID string) (process.Guest, error) {
	return guestAs[process.Guest](ctx, g.vms, owner, vmID)
}

// FileGuest implements file.Guests.
func (g guests) FileGuest(ctx context.Context, owner, vmID string) (file.Guest, error) {
	return guestAs[file.Guest](ctx, g.vms, owner, vmID)
}

// guestAs returns the VM's session, if it can do the work that T asks for.
func guestAs[T any](ctx context.Context, vms *vm.Service, owner, vmID string) (T, error) {
	session, err := vms.Guest(ctx, owner, vmID)
	if err != nil {
		var none T
		return none, err
	}
	guest, ok := session.(T)
	if !ok {
		return guest, errs.New(errs.Unsupported, "no_agent", "cannot work inside VM %s: it runs on a driver that reaches no agent", vmID)
	}
	return guest, nil
}
