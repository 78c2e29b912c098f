package api

import "time"

// CreateTemplate is the body of POST /templates: values that POST /vms takes
// where the request itself is silent.
type CreateTemplate struct {
	Name              string            `json:"name" minLength:"1" maxLength:"63" doc:"Unique per owner."`
	Description       string            `json:"description,omitempty" maxLength:"1024"`
	ImageID           string            `json:"image_id,omitempty"`
	VCPUCount         *int              `json:"vcpu_count,omitempty" minimum:"1" maximum:"4096"`
	MemMiB            *int              `json:"mem_mib,omitempty" minimum:"64" maximum:"67108864"`
	DiskMiB           *int              `json:"disk_mib,omitempty" minimum:"64" maximum:"16777216"`
	BootArgs          *string           `json:"boot_args,omitempty" maxLength:"1536"`
	EnableNetwork     *bool             `json:"enable_network,omitempty"`
	UserData          *string           `json:"user_data,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false"`
	RateLimits        *RateLimits       `json:"rate_limits,omitempty"`
}

// Template is a stored set of defaults. Lists leave out UserData.
type Template struct {
	ID string `json:"id" example:"tpl_abc123def456"`
	CreateTemplate
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}
