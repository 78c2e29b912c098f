package api

// Health is the response to GET /healthz: status 200 if every part is ok, else 503.
type Health struct {
	Status  string       `json:"status" enum:"ok,degraded" doc:"ok if every part is ok."`
	Version string       `json:"version" doc:"Version of hatchd."`
	VMM     string       `json:"vmm" doc:"Driver that auto means on this host." example:"qemu"`
	Parts   []HealthPart `json:"parts" nullable:"false" doc:"All parts."`
	VMCount *int         `json:"vm_count,omitempty" doc:"Number of the caller's VMs, in any state; only for callers with a key, while the database answers."`

	RouteCount *int `json:"route_count,omitempty" doc:"Number of routes to the caller's VMs; only for callers with a key, while the database answers."`
}

// HealthPart is the health of one part of the daemon.
type HealthPart struct {
	Name    string `json:"name" enum:"database,disk,descriptors,memory,processes,vmm,network,image" doc:"Part of the daemon."`
	Status  string `json:"status" enum:"ok,degraded"`
	Message string `json:"message,omitempty" doc:"What is wrong, and how to fix it."`
}
