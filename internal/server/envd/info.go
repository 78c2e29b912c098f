package envd

import (
	"net/http"

	"github.com/hatchvm/hatch/internal/vm"
)

// envs answers with the variables that the sandbox's processes have.
func (e *Envd) envs(w http.ResponseWriter, _ *http.Request, c call) {
	env := c.Env
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, http.StatusOK, env)
}

// metricsAnswer says what a sandbox uses; sizes are in bytes.
type metricsAnswer struct {
	TS        int64   `json:"ts"` // seconds since 1970
	CPUCount  int     `json:"cpu_count"`
	CPUUsed   float64 `json:"cpu_used_pct"` // of all its CPUs
	MemTotal  int64   `json:"mem_total"`
	MemUsed   int64   `json:"mem_used"`
	MemCache  int64   `json:"mem_cache"` // 0: the guest does not tell
	DiskTotal int64   `json:"disk_total"`
	DiskUsed  int64   `json:"disk_used"`
}

// metrics answers with what the sandbox uses.
func (e *Envd) metrics(w http.ResponseWriter, r *http.Request, c call) {
	m, err := e.cfg.Machines.Metrics(r.Context(), c.scope, c.VMID)
	if err != nil {
		e.fail(w, r, c, err)
		return
	}
	answer := metricsAnswer{TS: m.CollectedAt.Unix(), CPUCount: m.VM.VCPUs}
	if answer.CPUCount > 0 {
		answer.CPUUsed = m.CPUPercent / float64(answer.CPUCount)
	}
	usage := m.Guest
	if usage == nil {
		usage = &vm.GuestUsage{}
	}
	answer.MemTotal, answer.MemUsed = usage.MemTotal, usage.MemUsed
	answer.DiskTotal, answer.DiskUsed = usage.DiskTotal, usage.DiskUsed
	writeJSON(w, http.StatusOK, answer)
}
