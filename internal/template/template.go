// Package template stores defaults for new VMs: named sets of the fields of a create
// request. Values in a request win over them.
//
// It does not create VMs. Start at [Template] and [Service].
package template

import (
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
)

// Template is a set of defaults. A field without a value sets nothing.
type Template struct {
	ID, OwnerID, Name    string
	machine.Overrides                 // its description is the template's, too
	Routes               []route.Spec // to each VM
	Sharing              access.Sharing
	CreatedAt, UpdatedAt time.Time
}
