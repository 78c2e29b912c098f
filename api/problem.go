package api

// Problem is the body of every error response: RFC 9457 problem details, plus
// `error` (a sentence), `code` (stable, for programs), `hint` and `request_id`.
type Problem struct {
	Type      string         `json:"type,omitempty"`
	Title     string         `json:"title" example:"Bad Request"`
	Status    int            `json:"status" example:"400"`
	Detail    string         `json:"detail,omitempty"`
	Error     string         `json:"error" doc:"What went wrong, in one sentence."`
	Code      string         `json:"code" doc:"Stable machine-readable code." example:"invalid_guest_ip"`
	Field     string         `json:"field,omitempty" doc:"Field of the request that is wrong."`
	Hint      string         `json:"hint,omitempty" doc:"What to do."`
	VMID      string         `json:"vm_id,omitempty" doc:"The VM that a failed create or start has left in state error. The Location header has its path."`
	RequestID string         `json:"request_id,omitempty"`
	Errors    []ProblemField `json:"errors,omitempty" nullable:"false" doc:"All errors found in the request, if there are several."`
}

// ProblemField is one error in a request.
type ProblemField struct {
	Location string `json:"location,omitempty" doc:"Path of the field in the request." example:"body.vcpu_count"`
	Message  string `json:"message"`
}
