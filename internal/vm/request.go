package vm

import (
	"net"
	"net/netip"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
)

// CreateRequest is what a caller asks for. What it does not give is the
// template's, else the daemon's default.
type CreateRequest struct {
	machine.Overrides                  // Driver may be auto, for the default
	TemplateID        string           // "": none
	Address           netip.Addr       // invalid: any
	MAC               net.HardwareAddr // nil: derived from the address
	Name              string
	Routes            []route.Spec  // nil: the template's
	Rights            access.Rights // of the caller, some of which fields of the VM need
}
