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

// findGuest is one of the ways to a VM's session.
type findGuest func(ctx context.Context, owner, vmID string) (vm.Guest, error)

// ProcessGuest implements process.Guests.
func (g guests) ProcessGuest(ctx context.Context, owner, vmID string) (process.Guest, error) {
	return guestAs[process.Guest](ctx, g.vms.Guest, owner, vmID)
}

// AwakeProcessGuest implements process.Guests.
func (g guests) AwakeProcessGuest(ctx context.Context, owner, vmID string) (process.Guest, error) {
	return guestAs[process.Guest](ctx, g.vms.AwakeGuest, owner, vmID)
}

// FileGuest implements file.Guests.
func (g guests) FileGuest(ctx context.Context, owner, vmID string) (file.Guest, error) {
	return guestAs[file.Guest](ctx, g.vms.Guest, owner, vmID)
}

// AwakeFileGuest implements file.Guests.
func (g guests) AwakeFileGuest(ctx context.Context, owner, vmID string) (file.Guest, error) {
	return guestAs[file.Guest](ctx, g.vms.AwakeGuest, owner, vmID)
}

// guestAs returns the VM's session, as find has it, if it can do the work that T
// asks for.
func guestAs[T any](ctx context.Context, find findGuest, owner, vmID string) (T, error) {
	session, err := find(ctx, owner, vmID)
	if err != nil {
		var none T
		return none, err
	}
	guest, ok := session.(T)
	if !ok {
		return guest, errs.New(errs.Unsupported, "no_agent", "cannot work inside VM %s: it runs on a driver that reaches no agent", vmID).
			WithHint("use its console or SSH")
	}
	return guest, nil
}
