package vm

import (
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// CreateRequest is what a caller asks for. A nil or zero field takes the
// template's value, else the daemon's default.
type CreateRequest struct {
	ImageID, TemplateID    string
	VCPUs, MemMiB, DiskMiB *int
	BootArgs               *string
	EnableNetwork          *bool
	Address                netip.Addr       // invalid: any
	MAC                    net.HardwareAddr // nil: derived from the address
	UserData               *string
	Name                   string
	Labels                 map[string]string
	SSHKeys                []string
	RateLimits             *vmm.RateLimits
	Driver                 string // "", auto, or a driver's name
	Idempotency            Idempotency
}

// WaitFor is a condition to wait for. Exactly one field is set.
type WaitFor struct {
	State     State
	Ready     bool // see Conditions.Ready
	Agent     bool
	CloudInit bool // ended; an error of cloud-init ends the wait with errs.Conflict
	SSH       bool // an SSH banner on port 22
	Port      int  // a TCP port of the guest accepts
	HTTP      HTTPPage
}

// HTTPPage is a page of a server in a guest. To wait for it is to wait until a
// GET of it answers 2xx or 3xx.
type HTTPPage struct {
	Port int
	Path string // from its first slash, with the query
}

// Limits on what a caller may send.
const (
	MaxUserData    = 1 << 20 // bytes
	MaxLabels      = 64
	MaxLabelKey    = 63  // bytes
	MaxLabelValue  = 255 // bytes
	MaxSSHKeys     = 64
	MaxSSHKey      = 16 << 10 // bytes
	MaxWait        = 10 * time.Minute
	MinMemMiB      = 64
	MaxIdempotency = 255 // bytes of an idempotency key
)
