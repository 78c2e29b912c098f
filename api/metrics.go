package api

// Metrics is the resource usage of a VM. Counters start at CountersSince and never
// decrease while the VM runs. Values that only the guest knows are missing if its
// agent does not answer. All values of a VM that is not running are zero, except
// HostDiskBytes.
type Metrics struct {
	VMID          string       `json:"vm_id" doc:"The VM." example:"vm_abc123def456"`
	State         string       `json:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Current state."`
	VCPUCount     int          `json:"vcpu_count" doc:"Number of virtual CPUs."`
	MemMiB        int          `json:"mem_mib" doc:"Memory size in MiB."`
	CollectedAt   Time         `json:"collected_at" doc:"Time of the measurement, RFC 3339, UTC."`
	CountersSince *Time        `json:"counters_since,omitempty" doc:"Start of the counters: the start of the VM's VMM process. A reboot of the guest or a restart of hatchd does not change it; a stop and start does. Absent if the VM is not running."`
	UptimeSeconds int64        `json:"uptime_seconds" doc:"Seconds since the guest booted, or since counters_since if its agent does not answer."`
	VCPU          VCPUMetrics  `json:"vcpu"`
	Memory        MemMetrics   `json:"memory"`
	Disk          *DiskMetrics `json:"disk,omitempty" doc:"Root file system of the guest. Absent if neither the agent nor, on Firecracker, the guest's kernel reports it."`
	HostDiskBytes int64        `json:"host_disk_bytes" doc:"Size of the VM's files on the host's disk, in bytes."`
	Net           NetMetrics   `json:"net"`
	Block         BlockMetrics `json:"block"`
	Load          *LoadMetrics `json:"load,omitempty" doc:"Load averages of the guest. Absent if neither the agent nor, on Firecracker, the guest's kernel reports it."`
}

// VCPUMetrics is the CPU usage.
type VCPUMetrics struct {
	CPUTimeMicros      int64   `json:"cpu_time_micros" doc:"Counter: CPU time used on the host in microseconds, including device emulation."`
	UtilizationPercent float64 `json:"utilization_percent" doc:"CPU usage on the host in percent of one CPU. Measured since an earlier request that was 1 s to 1 min ago, else over 250 ms."`
	GuestBusyMicros    *int64  `json:"guest_busy_micros,omitempty" doc:"Busy time of all of the guest's CPUs since it booted, in microseconds. A reboot of the guest resets it. Absent if neither the agent nor, on Firecracker, the guest's kernel reports it."`
}

// MemMetrics is the memory usage.
type MemMetrics struct {
	GuestUsedBytes    *int64 `json:"guest_used_bytes,omitempty" doc:"Memory that is not available to new programs in the guest. Absent if neither the agent nor, on Firecracker, the guest's kernel reports it."`
	GuestTotalBytes   *int64 `json:"guest_total_bytes,omitempty" doc:"Memory that the guest's kernel manages. Absent if neither the agent nor, on Firecracker, the guest's kernel reports it."`
	HostResidentBytes int64  `json:"host_resident_bytes" doc:"Memory that the VM uses on the host, including that of its VMM."`
}

// DiskMetrics is the usage of the guest's root file system.
type DiskMetrics struct {
	UsedBytes  int64 `json:"used_bytes" doc:"Used bytes."`
	TotalBytes int64 `json:"total_bytes" doc:"Size in bytes."`
}

// NetMetrics are the counters of the guest's network device. Directions are the
// guest's.
type NetMetrics struct {
	RxBytes   uint64 `json:"rx_bytes" doc:"Counter: bytes received by the guest."`
	TxBytes   uint64 `json:"tx_bytes" doc:"Counter: bytes sent by the guest."`
	RxPackets uint64 `json:"rx_packets" doc:"Counter: packets received by the guest."`
	TxPackets uint64 `json:"tx_packets" doc:"Counter: packets sent by the guest."`
}

// BlockMetrics are the counters of all disks of a VM, added up.
type BlockMetrics struct {
	ReadBytes  uint64 `json:"read_bytes" doc:"Counter: bytes read by the guest."`
	WriteBytes uint64 `json:"write_bytes" doc:"Counter: bytes written by the guest."`
	ReadOps    uint64 `json:"read_ops" doc:"Counter: read operations."`
	WriteOps   uint64 `json:"write_ops" doc:"Counter: write operations."`
}

// LoadMetrics are the load averages of the guest.
type LoadMetrics struct {
	Avg1  float64 `json:"avg1" doc:"Over 1 minute."`
	Avg5  float64 `json:"avg5" doc:"Over 5 minutes."`
	Avg15 float64 `json:"avg15" doc:"Over 15 minutes."`
}
