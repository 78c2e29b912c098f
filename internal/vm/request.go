package vm

import (
	"net"
	"net/netip"

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
	Routes            []route.Spec // nil: the template's
	OwnsDomains       bool         // the caller need not prove the domains of its routes
}
