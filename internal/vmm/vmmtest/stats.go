package vmmtest

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Stats implements vmm.Machine. What a pretended guest uses grows with time.
func (m *fakeMachine) Stats(context.Context) (vmm.Stats, error) {
	if err := m.check(); err != nil {
		return vmm.Stats{}, err
	}
	const perSecond, block = 64 << 10, 4 << 10 // bytes
	age := time.Since(m.guest.startedAt)
	written := uint64(perSecond * age.Seconds())
	return vmm.Stats{
		StartedAt: m.guest.startedAt.UTC().Round(time.Second),
		CPUTime:   100*time.Millisecond + age/20,
		Resident:  64 << 20,
		Block:     vmm.BlockCounters{ReadBytes: 16 << 20, ReadOps: 16 << 20 / block, WriteBytes: written, WriteOps: written / block},
	}, nil
}
