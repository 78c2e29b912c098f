package api

// Problem is the body of every error: RFC 9457 problem details, plus `error`
// (one string), `code` (stable, for programs), `hint` and `request_id`.
type Problem struct {
	Type      string         `json:"type,omitempty"`
	Title     string         `json:"title" example:"Bad Request"`
	Status    int            `json:"status" example:"400"`
	Detail    string         `json:"detail,omitempty"`
	Error     string         `json:"error" doc:"What went wrong, in one sentence."`
	Code      string         `json:"code" doc:"Stable machine-readable code." example:"invalid_guest_ip"`
	Field     string         `json:"field,omitempty" doc:"The request's field at fault."`
	Hint      string         `json:"hint,omitempty" doc:"What to do."`
	RequestID string         `json:"request_id,omitempty"`
	Errors    []ProblemField `json:"errors,omitempty" nullable:"false" doc:"Every fault found, when there are several."`
}

// ProblemField is one fault of a request.
type ProblemField struct {
	Location string `json:"location,omitempty" doc:"Where in the request." example:"body.vcpu_count"`
	Message  string `json:"message"`
}
