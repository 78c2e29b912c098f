package api

// CreateTemplate is the body of POST /templates: default values for POST /vms.
type CreateTemplate struct {
	Name string `json:"name" minLength:"1" maxLength:"63" doc:"Unique per owner."`
	MachineSpec
}

// UpdateTemplate is the body of PATCH /templates/{id}, a JSON merge patch: absent fields
// stay, null removes one, and so it does within labels.
type UpdateTemplate struct {
	Name *string `json:"name,omitempty" minLength:"1" maxLength:"63" doc:"Unique per owner."`
	MachineSpec
}

// Template is a stored set of defaults. Lists omit UserData.
type Template struct {
	ID string `json:"id" example:"tpl_abc123def456"`
	CreateTemplate
	CreatedAt Time `json:"created_at"`
	UpdatedAt Time `json:"updated_at"`
}
