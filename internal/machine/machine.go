// Package machine is about what a VM is made of: its image, sizes, boot
// arguments, network, user data, keys, labels, rate limits and published ports.
//
// It has no identity, state or place on the host: those are internal/vm's. A VM
// and a snapshot have a [Spec]; a create request and a template have
// [Overrides]. Start at [Spec] and [Merge]; limits.go has [Spec.Check] and all
// limits. A new field of a VM is a field of both types, a line of Merge and a
// check.
package machine

import (
	"maps"
	"slices"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Spec is what a VM is made of, every value decided. The JSON form is stored in
// the rows of VMs and of snapshots: a key never changes its name or meaning.
type Spec struct {
	ImageID     string     `json:"image_id"`
	TemplateID  string     `json:"template_id,omitempty"` // "" without a template, which may be gone
	Boot        image.Boot `json:"boot"`                  // the image as it was when the VM was created
	Driver      string     `json:"driver,omitempty"`
	Description string     `json:"description,omitempty"`
	Hostname    string     `json:"hostname,omitempty"` // "" for the VM's name, else vm- and its id

	VCPUs         int               `json:"vcpus"`
	MemMiB        int               `json:"mem_mib"`
	DiskMiB       int               `json:"disk_mib"`
	BootArgs      string            `json:"boot_args,omitempty"`
	EnableNetwork bool              `json:"network"`
	UserData      string            `json:"user_data,omitempty"`
	SSHKeys       []string          `json:"ssh_keys,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	RateLimits    vmm.RateLimits    `json:"rate_limits,omitzero"`
	Ports         []Port            `json:"ports,omitempty"` // published on the host

	ImplicitRoutes route.Implicit `json:"implicit_routes,omitempty"`

	Idle   IdlePolicy `json:"idle,omitzero"`
	Expiry Expiry     `json:"expiry,omitzero"`

	Sandbox *Sandbox `json:"sandbox,omitempty"` // nil for a VM that is none
}

// Overrides are the values that a create request or a template gives. Nil, and
// "" for ImageID and Driver, means not given. The JSON form is stored in the rows
// of templates: a key never changes its name or meaning.
type Overrides struct {
	ImageID       string            `json:"image_id,omitempty"`
	Driver        string            `json:"driver,omitempty"`
	Description   *string           `json:"description,omitempty"`
	Hostname      *string           `json:"hostname,omitempty"`
	VCPUs         *int              `json:"vcpus,omitempty"`
	MemMiB        *int              `json:"mem_mib,omitempty"`
	DiskMiB       *int              `json:"disk_mib,omitempty"`
	BootArgs      *string           `json:"boot_args,omitempty"`
	EnableNetwork *bool             `json:"enable_network,omitempty"`
	UserData      *string           `json:"user_data,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`   // added to those of the layer below
	SSHKeys       []string          `json:"ssh_keys,omitempty"` // empty but not nil: none
	RateLimits    *vmm.RateLimits   `json:"rate_limits,omitempty"`
	Ports         []Port            `json:"ports,omitempty"` // empty but not nil: none

	ImplicitRoutes *route.Implicit `json:"implicit_routes,omitempty"`

	Idle   *IdlePolicy `json:"idle,omitempty"`   // replaces that of the layer below
	Expiry *Expiry     `json:"expiry,omitempty"` // likewise

	Sandbox *Sandbox `json:"sandbox,omitempty"` // likewise; never of a template
}

// Merge returns defaults with the values that the layers give; of two layers the
// later wins. The result shares no memory with them.
func Merge(defaults Spec, layers ...Overrides) Spec {
	s := defaults
	s.SSHKeys, s.Labels, s.Ports = slices.Clone(s.SSHKeys), maps.Clone(s.Labels), clonePorts(s.Ports)
	for _, o := range layers {
		s.override(o)
	}
	return s
}

func (s *Spec) override(o Overrides) {
	if o.ImageID != "" {
		s.ImageID = o.ImageID
	}
	if o.Driver != "" {
		s.Driver = o.Driver
	}
	set(&s.Description, o.Description)
	set(&s.Hostname, o.Hostname)
	set(&s.VCPUs, o.VCPUs)
	set(&s.MemMiB, o.MemMiB)
	set(&s.DiskMiB, o.DiskMiB)
	set(&s.BootArgs, o.BootArgs)
	set(&s.EnableNetwork, o.EnableNetwork)
	set(&s.UserData, o.UserData)
	set(&s.RateLimits, o.RateLimits)
	set(&s.ImplicitRoutes, o.ImplicitRoutes)
	set(&s.Idle, o.Idle)
	set(&s.Expiry, o.Expiry)
	if o.Sandbox != nil {
		s.Sandbox = o.Sandbox
	}
	if o.SSHKeys != nil {
		s.SSHKeys = slices.Clone(o.SSHKeys)
	}
	if o.Ports != nil {
		s.Ports = clonePorts(o.Ports)
	}
	if s.Labels == nil && len(o.Labels) > 0 {
		s.Labels = map[string]string{}
	}
	maps.Copy(s.Labels, o.Labels)
}

func set[T any](field, given *T) {
	if given != nil {
		*field = *given
	}
}

// Shape is the part of a spec that two VMs share when one can be cloned from a
// snapshot of the other: what their guests have booted with.
type Shape struct {
	ImageID       string
	Boot          image.Boot
	VCPUs         int
	MemMiB        int
	DiskMiB       int
	BootArgs      string
	EnableNetwork bool
}

// Shape returns the spec's shape.
func (s Spec) Shape() Shape {
	return Shape{
		ImageID: s.ImageID, Boot: s.Boot, VCPUs: s.VCPUs, MemMiB: s.MemMiB, DiskMiB: s.DiskMiB,
		BootArgs: s.BootArgs, EnableNetwork: s.EnableNetwork,
	}
}

// Spec returns a spec of this shape, without user data, keys, labels and limits.
func (s Shape) Spec() Spec {
	return Spec{
		ImageID: s.ImageID, Boot: s.Boot, VCPUs: s.VCPUs, MemMiB: s.MemMiB, DiskMiB: s.DiskMiB,
		BootArgs: s.BootArgs, EnableNetwork: s.EnableNetwork,
	}
}
