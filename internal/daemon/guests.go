package daemon

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/reach"
)

// processGuests and fileGuests open the guests of VMs for the nouns that work in
// them.
type (
	processGuests struct{ reach *reach.Reach }
	fileGuests    struct{ reach *reach.Reach }
)

var (
	_ process.Guests = processGuests{}
	_ file.Guests    = fileGuests{}
)

// Open implements process.Guests.
func (g processGuests) Open(ctx context.Context, scope access.Scope, vmID string, mode process.Mode) (process.Guest, func(), error) {
	return g.reach.Open(ctx, scope, vmID, reach.Exec, wakeIf(mode == process.Wake))
}

// Open implements file.Guests.
func (g fileGuests) Open(ctx context.Context, scope access.Scope, vmID string, mode file.Mode) (file.Guest, func(), error) {
	return g.reach.Open(ctx, scope, vmID, reach.Files, wakeIf(mode == file.Wake))
}

// causeOf returns what a guest is used for by the clients of a forward.
func causeOf(kind network.ForwardKind) reach.Cause {
	if kind == network.ForwardSSH {
		return reach.SSH
	}
	return reach.Port
}

func wakeIf(wake bool) reach.Mode {
	if wake {
		return reach.Wake
	}
	return reach.NoWake
}
