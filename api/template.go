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
	Visibility *string  `json:"visibility,omitempty" enum:"private,shared,public" doc:"Who sees the template, with its user data, beside its owner: no other user, those of shared_with, or all users. Only an admin makes it public."`
	SharedWith []string `json:"shared_with,omitempty" maxItems:"256" doc:"IDs or names of users, for the visibility shared."`
}

// Template is a stored set of defaults. Lists omit UserData.
type Template struct {
	ID string `json:"id" example:"tpl_abc123def456"`
	CreateTemplate
	OwnerID    string   `json:"owner_id" doc:"The user it belongs to."`
	Visibility string   `json:"visibility" enum:"private,shared,public" doc:"Who sees it beside its owner: no other user, those of shared_with, or all users."`
	SharedWith []string `json:"shared_with,omitempty" nullable:"false" doc:"IDs of users. Only to the owner and to admins."`
	CreatedAt  Time     `json:"created_at"`
	UpdatedAt  Time     `json:"updated_at"`
}
