package vmm

import "time"

// Stats is what one machine has used of the host. Counters start with the VMM
// process, continue across reboots of the guest and restarts of the daemon, and
// never decrease.
type Stats struct {
	StartedAt time.Time     // of the VMM process, to the second
	CPUTime   time.Duration // user and system time of all its threads
	Resident  int64         // bytes of host memory, shared pages included
	Block     BlockCounters // of all its disks together

	GuestMemory GuestMemory // as last reported by the guest's kernel
}

// GuestMemory is what a guest reports about its memory, in bytes. The zero value
// means that it has reported nothing.
type GuestMemory struct {
	Total     int64
	Available int64 // to programs, without swapping; at most Total
}

// BlockCounters count a guest's disk requests.
type BlockCounters struct {
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}
