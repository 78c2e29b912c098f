package api

import "time"

// Metrics are what a VM uses. Counters count from CountersSince and never go
// back while the VM runs. What only the guest's agent knows is left out when it
// does not answer. Of a VM that does not run all but HostDiskBytes is zero.
type Metrics struct {
	VMID          string       `json:"vm_id" doc:"The VM." example:"vm_abc123def456"`
	State         string       `json:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Current state."`
	VCPUCount     int          `json:"vcpu_count" doc:"Number of virtual CPUs."`
	MemMiB        int          `json:"mem_mib" doc:"Memory size in MiB."`
	CollectedAt   time.Time    `json:"collected_at" doc:"When the numbers were read, RFC 3339, UTC."`
	CountersSince *time.Time   `json:"counters_since,omitempty" doc:"What the counters count from: the start of the VM's VMM process. Neither a reboot of the guest nor a restart of hatchd changes it; a stop and start does. Absent when the VM does not run."`
	UptimeSeconds int64        `json:"uptime_seconds" doc:"Since the guest's boot; since counters_since when its agent does not answer."`
	VCPU          VCPUMetrics  `json:"vcpu"`
	Memory        MemMetrics   `json:"memory"`
	Disk          *DiskMetrics `json:"disk,omitempty" doc:"The guest's root file system. Absent when nobody tells: no agent, nor the kernel of a guest on Firecracker."`
	HostDiskBytes int64        `json:"host_disk_bytes" doc:"What the VM's files take on the host's disk."`
	Net           NetMetrics   `json:"net"`
	Block         BlockMetrics `json:"block"`
	Load          *LoadMetrics `json:"load,omitempty" doc:"The guest's load averages. Absent when nobody tells: no agent, nor the kernel of a guest on Firecracker."`
}

// VCPUMetrics are about CPUs.
type VCPUMetrics struct {
	CPUTimeMicros      int64   `json:"cpu_time_micros" doc:"Counter: CPU time of the host that the VM has used, device emulation included."`
	UtilizationPercent float64 `json:"utilization_percent" doc:"Use of the host's CPUs; 100 is one whole CPU. Over the time since an earlier reading that is 1 s to 1 min old, else over a quarter of a second."`
	GuestBusyMicros    *int64  `json:"guest_busy_micros,omitempty" doc:"How long the guest's CPUs were busy since its boot, all together. It begins anew when the guest reboots. Absent when nobody tells: no agent, nor the kernel of a guest on Firecracker."`
}

// MemMetrics are about memory.
type MemMetrics struct {
	GuestUsedBytes    *int64 `json:"guest_used_bytes,omitempty" doc:"What the guest could not give to a new program. Absent when nobody tells: no agent, nor the kernel of a guest on Firecracker."`
	GuestTotalBytes   *int64 `json:"guest_total_bytes,omitempty" doc:"What the guest's kernel has. Absent when nobody tells: no agent, nor the kernel of a guest on Firecracker."`
	HostResidentBytes int64  `json:"host_resident_bytes" doc:"Memory of the host that the VM holds, the VMM's own included."`
}

// DiskMetrics are about the guest's root file system.
type DiskMetrics struct {
	UsedBytes  int64 `json:"used_bytes" doc:"Taken."`
	TotalBytes int64 `json:"total_bytes" doc:"Its size."`
}

// NetMetrics are counters of the guest's network device, as the guest sees it.
type NetMetrics struct {
	RxBytes   uint64 `json:"rx_bytes" doc:"Counter: bytes that the guest has received."`
	TxBytes   uint64 `json:"tx_bytes" doc:"Counter: bytes that the guest has sent."`
	RxPackets uint64 `json:"rx_packets" doc:"Counter: packets that the guest has received."`
	TxPackets uint64 `json:"tx_packets" doc:"Counter: packets that the guest has sent."`
}

// BlockMetrics are counters of all of a VM's disks together.
type BlockMetrics struct {
	ReadBytes  uint64 `json:"read_bytes" doc:"Counter: bytes that the guest has read from its disks."`
	WriteBytes uint64 `json:"write_bytes" doc:"Counter: bytes that the guest has written to its disks."`
	ReadOps    uint64 `json:"read_ops" doc:"Counter: reads."`
	WriteOps   uint64 `json:"write_ops" doc:"Counter: writes."`
}

// LoadMetrics are the guest's load averages.
type LoadMetrics struct {
	Avg1  float64 `json:"avg1" doc:"Over 1 minute."`
	Avg5  float64 `json:"avg5" doc:"Over 5 minutes."`
	Avg15 float64 `json:"avg15" doc:"Over 15 minutes."`
}
