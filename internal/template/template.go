// Package template is about stored defaults for new VMs: named sets of the
// same fields that a create request has. Explicit request values win over them.
//
// It does not create VMs. Start at [Template] and [Service].
package template

import (
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Template is a set of defaults. A nil or empty field says nothing.
type Template struct {
	ID, OwnerID, Name, Description string
	Defaults
	CreatedAt, UpdatedAt time.Time
}

// Defaults are the values a template supplies.
type Defaults struct {
	ImageID       string            `json:"image_id,omitempty"`
	VCPUs         *int              `json:"vcpus,omitempty"`
	MemMiB        *int              `json:"mem_mib,omitempty"`
	DiskMiB       *int              `json:"disk_mib,omitempty"`
	BootArgs      *string           `json:"boot_args,omitempty"`
	EnableNetwork *bool             `json:"enable_network,omitempty"`
	UserData      *string           `json:"user_data,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	SSHKeys       []string          `json:"ssh_keys,omitempty"`
	RateLimits    *vmm.RateLimits   `json:"rate_limits,omitempty"`
}
