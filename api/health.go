package api

// Health is the body of GET /healthz: 200 when every part is well, else 503.
type Health struct {
	Status  string       `json:"status" enum:"ok,degraded" doc:"ok when every part is well."`
	Version string       `json:"version" doc:"Of hatchd."`
	VMM     string       `json:"vmm" doc:"The driver that auto chose." example:"qemu"`
	Parts   []HealthPart `json:"parts" nullable:"false" doc:"Every part, well or not."`
}

// HealthPart is the health of one part of the daemon.
type HealthPart struct {
	Name    string `json:"name" enum:"database,vmm,network,image" doc:"Which part."`
	Status  string `json:"status" enum:"ok,degraded"`
	Message string `json:"message,omitempty" doc:"What is wrong, and what mends it."`
}
