package vm

import (
	"time"

	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Metrics are what a VM uses. The counters count from the start of its VMM
// process and never decrease while it lives: neither a reboot of the guest nor a
// restart of hatchd resets them. Without a VMM all but HostDisk is zero.
type Metrics struct {
	VM            VM
	CollectedAt   time.Time
	CountersSince *time.Time // the start of the VMM; nil without one
	Uptime        time.Duration

	CPUTime    time.Duration // of the VMM: the guest's CPUs, and the devices' emulation
	CPUPercent float64       // 100 is one CPU of the host
	Resident   int64         // bytes of the host's memory
	Block      vmm.BlockCounters
	Traffic    network.Traffic
	HostDisk   int64       // bytes that the VM's files take on the host
	Guest      *GuestUsage // nil when no agent answers

	// GuestMemory is what the guest's kernel last reported to the VMM; zero:
	// nothing. Guest, when not nil, is newer.
	GuestMemory vmm.GuestMemory
}
