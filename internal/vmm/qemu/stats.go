//go:build linux && amd64

package qemu

import (
	"context"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Stats implements vmm.Machine.
func (m *machine) Stats(ctx context.Context) (vmm.Stats, error) {
	var disks []blockStats
	if err := m.command(ctx, "query-blockstats", &disks); err != nil {
		return vmm.Stats{}, err
	}
	stats, err := m.Usage()
	for _, d := range disks {
		stats.Block.ReadBytes += d.Stats.ReadBytes
		stats.Block.WriteBytes += d.Stats.WriteBytes
		stats.Block.ReadOps += d.Stats.ReadOps
		stats.Block.WriteOps += d.Stats.WriteOps
	}
	return stats, err
}

// blockStats are QEMU's counters of one disk.
type blockStats struct {
	Stats struct {
		ReadBytes  uint64 `json:"rd_bytes"`
		WriteBytes uint64 `json:"wr_bytes"`
		ReadOps    uint64 `json:"rd_operations"`
		WriteOps   uint64 `json:"wr_operations"`
	}
}
