//go:build linux && amd64

package qemu

import (
	"context"
	"errors"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Stats implements vmm.Machine.
func (m *machine) Stats(ctx context.Context) (vmm.Stats, error) {
	var disks []blockStats
	if err := m.command(ctx, "query-blockstats", &disks); err != nil {
		return vmm.Stats{}, err
	}
	used, err := m.proc.Usage()
	if errors.Is(err, jail.ErrGone) {
		return vmm.Stats{}, errGone(m.handle.ID)
	}
	if err != nil {
		return vmm.Stats{}, err
	}
	return vmm.Stats{StartedAt: used.StartedAt, CPUTime: used.CPU, Resident: used.Resident, Block: sumBlocks(disks)}, nil
}

// blockStats is what QEMU tells of one disk.
type blockStats struct {
	Stats struct {
		ReadBytes  uint64 `json:"rd_bytes"`
		WriteBytes uint64 `json:"wr_bytes"`
		ReadOps    uint64 `json:"rd_operations"`
		WriteOps   uint64 `json:"wr_operations"`
	}
}

func sumBlocks(disks []blockStats) (sum vmm.BlockCounters) {
	for _, d := range disks {
		sum.ReadBytes += d.Stats.ReadBytes
		sum.WriteBytes += d.Stats.WriteBytes
		sum.ReadOps += d.Stats.ReadOps
		sum.WriteOps += d.Stats.WriteOps
	}
	return sum
}
