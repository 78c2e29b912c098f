package httpapi

import (
	"context"
	"math"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/vm"
)

const metricsText = `What a VM uses in any state: CPU, memory, disks and network. ` +
	`Counters start at counters_since and never decrease while the VM runs. ` +
	`Values from the guest's agent are left out if it does not answer within two seconds; ` +
	`its memory is then what its kernel last reported to Firecracker.`

func (h *vmHandlers) metrics(ctx context.Context, in *IDPath) (*answer[api.Metrics], error) {
	m, err := h.vms.Metrics(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Metrics]{Body: metrics(m)}, nil
}

func metrics(m vm.Metrics) api.Metrics {
	out := api.Metrics{
		VMID: m.VM.ID, State: string(m.VM.State), VCPUCount: m.VM.VCPUs, MemMiB: m.VM.MemMiB,
		CollectedAt: utc(m.CollectedAt), CountersSince: utcOrNil(m.CountersSince), UptimeSeconds: int64(m.Uptime / time.Second),
		VCPU:          api.VCPUMetrics{CPUTimeMicros: m.CPUTime.Microseconds(), UtilizationPercent: hundredths(m.CPUPercent)},
		Memory:        api.MemMetrics{HostResidentBytes: m.Resident},
		HostDiskBytes: m.HostDisk,
		Net:           api.NetMetrics(m.Traffic),
		Block:         api.BlockMetrics(m.Block),
	}
	if g := m.GuestMemory; g.Total > 0 {
		used := g.Total - g.Available
		out.Memory.GuestUsedBytes, out.Memory.GuestTotalBytes = &used, &g.Total
	}
	if g := m.Guest; g != nil {
		busy := g.CPUBusy.Microseconds()
		out.VCPU.GuestBusyMicros = &busy
		out.Memory.GuestUsedBytes, out.Memory.GuestTotalBytes = &g.MemUsed, &g.MemTotal
		out.Disk = &api.DiskMetrics{UsedBytes: g.DiskUsed, TotalBytes: g.DiskTotal}
		out.Load = &api.LoadMetrics{Avg1: g.Load[0], Avg5: g.Load[1], Avg15: g.Load[2]}
	}
	return out
}

// hundredths rounds to two decimal places.
func hundredths(f float64) float64 { return math.Round(100*f) / 100 }
