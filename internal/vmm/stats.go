package vmm

import "time"

// Stats is what one machine has used of the host. Its counters count from the
// start of the VMM process, whatever the guest or the daemon did since, and
// never go back.
type Stats struct {
	StartedAt time.Time     // of the VMM process, to the second
	CPUTime   time.Duration // user and system time of all its threads
	Resident  int64         // bytes of host memory that it holds, shared ones included
	Block     BlockCounters // of all its disks together

	GuestMemory GuestMemory // as the guest's kernel told last
}

// GuestMemory is what a guest says of its memory, in bytes. The zero value:
// nobody has said it.
type GuestMemory struct {
	Total     int64
	Available int64 // to programs, without swapping; at most Total
}

// BlockCounters count what a guest has asked of its disks.
type BlockCounters struct {
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}
